//! How the guest's kernel takes memory that is given to it while it runs.

use std::io;

use crate::system::System;

const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";
/// Memory that comes is used at once, and only for what can be moved: else it could never be given
/// back.
const MOVABLE: &str = "online_movable";

/// Has the kernel take new memory so that it can be given back. A kernel without memory hot-plug
/// has no such setting, and is left alone.
///
/// # Errors
/// The kernel refused.
pub fn prepare(system: &System) -> io::Result<()> {
    let path = system.path(POLICY);
    match system.read(POLICY) {
        Ok(policy) if policy.trim() != MOVABLE => std::fs::write(path, MOVABLE),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_memory_is_movable() {
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        prepare(&system).unwrap();
        let path = system.path(POLICY);
        assert!(!path.exists());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "offline\n").unwrap();
        prepare(&system).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), MOVABLE);
    }
}
