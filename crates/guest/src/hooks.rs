//! Files with which a guest's owner takes part: executables in a directory of the agent's.
//!
//! The agent runs them as root, so only root's own files count, which nobody else may write.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use plimsoll_api::guest::{ExecRequest, MAX_HOOKS};

/// The files of a directory that are root's own, in the order of their names; at most
/// [`MAX_HOOKS`].
#[must_use]
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        std::fs::metadata(file)
            .is_ok_and(|metadata| metadata.is_file() && is_roots(metadata.uid(), metadata.mode()))
    });
    files.sort_unstable();
    files.truncate(MAX_HOOKS);
    files
}

/// Those of them that can be executed.
#[must_use]
pub(crate) fn in_directory(directory: &Path) -> Vec<PathBuf> {
    let mut hooks = files(directory);
    hooks.retain(|hook| is_executable(hook));
    hooks
}

/// Whether its owner may execute it.
#[must_use]
pub(crate) fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.mode() & 0o100 != 0)
}

/// A call of a hook, of which no output is kept.
#[must_use]
pub(crate) fn command(argv: Vec<String>, timeout_ms: u64) -> ExecRequest {
    ExecRequest { argv, env: Vec::new(), stdin: Vec::new(), timeout_ms, max_output_bytes: 0 }
}

fn is_roots(owner: u32, mode: u32) -> bool {
    owner == 0 && mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_roots_own_files_are_hooks() {
        assert!(is_roots(0, 0o100_755));
        assert!(is_roots(0, 0o100_644));
        assert!(!is_roots(1000, 0o100_755));
        assert!(!is_roots(0, 0o100_775));
        assert!(!is_roots(0, 0o100_646));
    }

    #[test]
    fn hooks_come_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        for (name, mode) in [("20", 0o755), ("10", 0o700), ("30", 0o644), ("40", 0o777)] {
            let path = root.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(root.path().join("00")).unwrap();
        if rustix::process::geteuid().is_root() {
            let names = |paths: Vec<PathBuf>| -> Vec<String> {
                let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
                paths.into_iter().map(name).collect()
            };
            assert_eq!(names(in_directory(root.path())), ["10", "20"]);
            assert_eq!(names(files(root.path())), ["10", "20", "30"]);
        }
        assert!(files(&root.path().join("none")).is_empty());
    }
}
