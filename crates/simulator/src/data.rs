//! Where tests find the recorded workloads.

use std::path::PathBuf;

/// A folder of the data that `PLIMSOLL_DATA` names, beside the repository unless it says otherwise.
/// Without it the test says so and ends.
pub(crate) fn folder(name: &str) -> Option<PathBuf> {
    let data = std::env::var_os("PLIMSOLL_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let folder = data.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("NOT TESTED: {} is not there; PLIMSOLL_DATA names the data", folder.display());
    None
}
