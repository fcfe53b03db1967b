//! Images. `project: None` means the public ones, which only the cluster's own tokens change.
//!
//! The bytes are the HTTP side's business: it asks with [`image_file_expected`] what an upload must
//! be, verifies it, keeps it under its checksum, and says so with [`image_file_done`].
//! [`image_files`] lists every checksum that is still needed.

use std::collections::BTreeSet;

use plimsoll_api::v1::CreateImageRequest;
use plimsoll_model::{Bytes, HostId, Image, ImageFile, ImageFileKind, Name};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// What the header of a disk file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// `qcow2` or `raw`.
    pub format: String,
    /// The disk's virtual size.
    pub virtual_size: Bytes,
}

/// Announces an image; it is ready once its files are there.
///
/// # Errors
/// The name is taken, or the files are not exactly one disk with at most a kernel and an initrd.
pub async fn image_create(
    core: &Core,
    caller: &Caller,
    project: Option<&Name>,
    request: CreateImageRequest,
) -> Result<Image, AppError> {
    let _ = (core, caller, project, request);
    todo!()
}

/// The images of a project (without the public ones), or the public ones, by name.
///
/// # Errors
/// There is no such project for the caller.
pub fn image_list(
    core: &Core,
    caller: &Caller,
    project: Option<&Name>,
) -> Result<Vec<Image>, AppError> {
    let _ = (core, caller, project);
    todo!()
}

/// One image.
///
/// # Errors
/// There is no such image for the caller.
pub fn image_show(
    core: &Core,
    caller: &Caller,
    project: Option<&Name>,
    image: &Name,
) -> Result<Image, AppError> {
    let _ = (core, caller, project, image);
    todo!()
}

/// Deletes an image.
///
/// # Errors
/// VMs were made from it and may need it again.
pub async fn image_delete(
    core: &Core,
    caller: &Caller,
    project: Option<&Name>,
    image: &Name,
) -> Result<(), AppError> {
    let _ = (core, caller, project, image);
    todo!()
}

/// What an upload of this part of the image must be.
///
/// # Errors
/// There is no such image or part for the caller, or the image is complete.
pub fn image_file_expected(
    core: &Core,
    caller: &Caller,
    project: Option<&Name>,
    image: &Name,
    kind: ImageFileKind,
) -> Result<ImageFile, AppError> {
    let _ = (core, caller, project, image, kind);
    todo!()
}

/// A part of an image is there, durable and verified. For a disk: with what its header says.
///
/// # Errors
/// There is no such image or part for the caller, or the disk's format is unknown.
pub async fn image_file_done(
    core: &Core,
    caller: &Caller,
    project: Option<&Name>,
    image: &Name,
    kind: ImageFileKind,
    disk: Option<DiskFacts>,
) -> Result<Image, AppError> {
    let _ = (core, caller, project, image, kind, disk);
    todo!()
}

/// The file of this checksum, if it is part of an image that a VM of this host is made from.
///
/// # Errors
/// It is not.
pub fn image_file_for_host(core: &Core, host: HostId, sha256: &str) -> Result<ImageFile, AppError> {
    let _ = (core, host, sha256);
    todo!()
}

/// The checksums of all files of all images: others may be removed.
#[must_use]
pub fn image_files(core: &Core) -> BTreeSet<String> {
    let _ = core;
    todo!()
}
