//! Real areas, where this process may add any. Each test makes its own and ends it.

use super::*;

fn can_swap() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    eprintln!("SKIPPED: needs root");
    false
}

fn file(size: Bytes) -> SwapConfig {
    SwapConfig::File { size, directory: None }
}

/// A test that fails leaves no area behind.
struct Cleared(tempfile::TempDir);

impl Cleared {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn swap_files(&self) -> usize {
        let files = std::fs::read_dir(self.path()).unwrap().filter_map(Result::ok);
        files.filter(|file| file.path().extension().is_some_and(|name| name == "swap")).count()
    }
}

impl Drop for Cleared {
    fn drop(&mut self) {
        let _ = remove(self.path());
    }
}

#[test]
fn a_file_is_set_up_once_found_again_and_removed() {
    if !can_swap() {
        return;
    }
    let directory = Cleared::new();
    let before = areas().unwrap();
    let area = set_up(&file(Bytes::mib(32)), directory.path()).unwrap().unwrap();
    assert_eq!((area.size, area.priority), (Bytes(Bytes::mib(32).get() - 4096), 10));
    // As an agent does that was killed: it knows nothing.
    let again = set_up(&file(Bytes::mib(32)), directory.path()).unwrap().unwrap();
    assert_eq!(again.path, area.path);
    assert_eq!(directory.swap_files(), 1);
    // Another size is another area, in the place of the first.
    let other = set_up(&file(Bytes::mib(48)), directory.path()).unwrap().unwrap();
    assert_ne!(other.path, area.path);
    assert_eq!((directory.swap_files(), area.path.exists()), (1, false));
    remove(directory.path()).unwrap();
    remove(directory.path()).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let paths = |areas: &[Area]| areas.iter().map(|area| area.path.clone()).collect::<Vec<_>>();
    assert!(!paths(&areas().unwrap()).contains(&other.path));
    assert!(paths(&before).iter().all(|path| *path != other.path && *path != area.path));
}

#[test]
fn zram_gets_a_device_of_its_own_and_leaves_none() {
    if !can_swap() || !zram_is_possible() {
        eprintln!("SKIPPED: needs root and zram");
        return;
    }
    let directory = Cleared::new();
    let config = SwapConfig::Zram { size: Bytes::mib(64) };
    let area = set_up(&config, directory.path()).unwrap().unwrap();
    assert!(area.path.starts_with("/dev") && area.priority == 100, "{area:?}");
    assert_eq!(set_up(&config, directory.path()).unwrap().unwrap().path, area.path);
    // No longer wanted: the next start removes it.
    assert_eq!(set_up(&SwapConfig::None {}, directory.path()).unwrap(), None);
    assert!(!Path::new("/sys/block").join(area.path.file_name().unwrap()).exists());
    assert!(!directory.path().join(RECORD).exists());
}

#[test]
fn an_agent_that_was_killed_on_the_way_leaves_nothing_for_ever() {
    if !can_swap() {
        return;
    }
    let directory = Cleared::new();
    let id = Uuid::new_v4();
    let path = file_path(directory.path(), id);
    // Killed after the record, and after the file was made, before it was formatted.
    for made in [false, true] {
        let record = Record::new(Kind::File, path.clone(), Bytes::mib(32), id).unwrap();
        record.write(directory.path()).unwrap();
        if made {
            system::allocate(&path, Bytes::mib(32)).unwrap();
        }
        let area = set_up(&file(Bytes::mib(32)), directory.path()).unwrap().unwrap();
        assert_ne!(area.path, path);
        assert_eq!((path.exists(), directory.swap_files()), (false, 1));
        remove(directory.path()).unwrap();
    }
    // Formatted and recorded, as after a boot: it is put to use again.
    let record = Record::new(Kind::File, path.clone(), Bytes::mib(32), id).unwrap();
    record.write(directory.path()).unwrap();
    system::allocate(&path, Bytes::mib(32)).unwrap();
    header::write(&path, Bytes::mib(32), id).unwrap();
    let area = set_up(&file(Bytes::mib(32)), directory.path()).unwrap().unwrap();
    assert_eq!(area.path, path);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    // A record that names somebody's device or file, with another's header or none.
    let precious = directory.path().join("precious");
    std::fs::write(&precious, b"data").unwrap();
    let id = Uuid::new_v4();
    let zram = Record::new(Kind::Zram, precious.clone(), Bytes::mib(32), id).unwrap();
    zram.write(directory.path()).unwrap();
    remove(directory.path()).unwrap();
    assert_eq!(std::fs::read(&precious).unwrap(), b"data");
    let old = Record { boot_id: "another".into(), ..zram };
    assert!(!old.is_ours().unwrap());
    std::fs::write(directory.path().join(RECORD), b"{").unwrap();
    assert!(matches!(set_up(&SwapConfig::None {}, directory.path()), Err(SwapError::Record(_))));
}

#[test]
fn sizes_that_cannot_be_are_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |config: &SwapConfig| set_up(config, directory.path()).unwrap_err();
    assert!(matches!(refused(&file(Bytes::mib(1))), SwapError::Size { .. }));
    assert!(matches!(refused(&file(Bytes(u64::MAX))), SwapError::Size { .. }));
    assert!(matches!(refused(&file(Bytes::gib(8 << 10))), SwapError::NoSpace { .. }));
    let zram = SwapConfig::Zram { size: Bytes::gib(1 << 10) };
    assert!(matches!(refused(&zram), SwapError::Size { .. }));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
