//! Images. `project: None` means the public ones, which only the cluster's own tokens change.
//!
//! The bytes are the HTTP side's business: it asks with [`image_file_expected`] what an upload must
//! be, verifies it, keeps it under its checksum, and says so with [`image_file_done`].
//! [`image_files`] lists every checksum that is still needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use plimsoll_api::v1::CreateImageRequest;
use plimsoll_model::{
    Bytes, EventKind, HostId, Image, ImageFile, ImageFileKind, ImageId, ImagePhase, Name,
    ProjectId, Role, Severity, Subject,
};

use crate::{
    admission::validate,
    app::{AppError, Caller, Noun},
    core::{Core, State, record::ImageRecord, txn::Txn},
};

/// The largest file of an image, and the most that its disk may hold.
const MAX_FILE: u64 = 1 << 44;

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
    check_files(&request)?;
    let (caller_, project) = (caller.clone(), project.cloned());
    core.submit(Some(caller.token), move |txn| {
        let owner = may_change(&txn.state, &caller_, project.as_ref())?;
        let name = request.name;
        if txn.state.image_by_name(owner, &name).is_some() {
            return Err(AppError::AlreadyExists { what: Noun::Image, name: name.to_string() });
        }
        let image = Image {
            id: ImageId(txn.uuid()),
            project: owner,
            name,
            description: request.description,
            files: request.files,
            append: request.append,
            disk_size: Bytes::ZERO,
            disk_format: String::new(),
            min_memory: request.min_memory,
            guest_agent: request.guest_agent,
            phase: ImagePhase::Uploading,
            created_at: txn.now,
        };
        log(txn, &image, EventKind::ImageCreated, "announced");
        txn.put_image(ImageRecord { image: image.clone(), present: BTreeSet::new() });
        Ok(image)
    })
    .await
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
    let state = core.snapshot();
    let owner = owner(&state, caller, project)?;
    let mut images: Vec<Image> = state
        .images
        .values()
        .filter(|record| record.image.project == owner)
        .map(|record| record.image.clone())
        .collect();
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
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
    let state = core.snapshot();
    let owner = owner(&state, caller, project)?;
    find(&state, owner, image).map(|record| record.image.clone())
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
    let (caller_, project, name) = (caller.clone(), project.cloned(), image.clone());
    core.submit(Some(caller.token), move |txn| {
        let owner = may_change(&txn.state, &caller_, project.as_ref())?;
        let record = Arc::clone(find(&txn.state, owner, &name)?);
        let users = txn.state.vms.values().filter(|vm| vm.image == record.image.id).count();
        if users > 0 {
            return Err(AppError::InUse {
                what: Noun::Image,
                name: name.to_string(),
                by: format!("{users} VMs"),
                hint: "delete the VMs that were made from it first: their disks build on it",
            });
        }
        log(txn, &record.image, EventKind::ImageDeleted, "deleted");
        txn.remove_image(record.image.id);
        Ok(())
    })
    .await
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
    let state = core.snapshot();
    let owner = may_change(&state, caller, project)?;
    let record = find(&state, owner, image)?;
    part(record, kind).cloned()
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
    let (caller_, project, name) = (caller.clone(), project.cloned(), image.clone());
    core.submit(Some(caller.token), move |txn| {
        let owner = may_change(&txn.state, &caller_, project.as_ref())?;
        let mut record = (**find(&txn.state, owner, &name)?).clone();
        part(&record, kind)?;
        if record.image.phase == ImagePhase::Ready {
            return Ok(record.image);
        }
        if kind == ImageFileKind::Disk {
            let facts = disk.ok_or_else(|| {
                AppError::invalid("disk", "its header was not read", "upload it again")
            })?;
            if !matches!(facts.format.as_str(), "qcow2" | "raw") {
                return Err(AppError::invalid(
                    "disk",
                    format!("`{}` is not a known format", facts.format),
                    "convert it: `qemu-img convert -O qcow2`",
                ));
            }
            if facts.virtual_size == Bytes::ZERO || facts.virtual_size.0 > MAX_FILE {
                return Err(AppError::invalid(
                    "disk",
                    format!("a virtual size of {}", facts.virtual_size),
                    "use a disk of at most 16TiB that is not empty",
                ));
            }
            record.image.disk_format = facts.format;
            record.image.disk_size = facts.virtual_size;
        }
        record.present.insert(kind);
        let complete = record.image.files.iter().all(|file| record.present.contains(&file.kind));
        if complete {
            record.image.phase = ImagePhase::Ready;
            log(txn, &record.image, EventKind::ImageReady, "ready");
        }
        let image = record.image.clone();
        txn.put_image(record);
        Ok(image)
    })
    .await
}

/// The file of this checksum, if it is part of an image that a VM of this host is made from.
///
/// # Errors
/// It is not.
pub fn image_file_for_host(core: &Core, host: HostId, sha256: &str) -> Result<ImageFile, AppError> {
    let state = core.snapshot();
    state
        .vms_of_host(host)
        .filter_map(|vm| state.images.get(&vm.image))
        .flat_map(|record| &record.image.files)
        .find(|file| file.sha256 == sha256)
        .cloned()
        .ok_or_else(|| AppError::not_found(Noun::ImageFile, sha256))
}

/// The checksums of all files of all images: others may be removed.
#[must_use]
pub fn image_files(core: &Core) -> BTreeSet<String> {
    let state = core.snapshot();
    state
        .images
        .values()
        .flat_map(|record| &record.image.files)
        .map(|file| file.sha256.clone())
        .collect()
}

fn owner(
    state: &State,
    caller: &Caller,
    project: Option<&Name>,
) -> Result<Option<ProjectId>, AppError> {
    project.map(|name| caller.project(state, name).map(|project| project.id)).transpose()
}

fn may_change(
    state: &State,
    caller: &Caller,
    project: Option<&Name>,
) -> Result<Option<ProjectId>, AppError> {
    let owner = owner(state, caller, project)?;
    match owner {
        Some(_) => caller.at_least(Role::Operator)?,
        None => caller.in_cluster(Role::Operator)?,
    }
    Ok(owner)
}

fn find<'a>(
    state: &'a State,
    owner: Option<ProjectId>,
    name: &Name,
) -> Result<&'a Arc<ImageRecord>, AppError> {
    state.image_by_name(owner, name).ok_or_else(|| AppError::not_found(Noun::Image, name))
}

fn part(record: &ImageRecord, kind: ImageFileKind) -> Result<&ImageFile, AppError> {
    record
        .image
        .files
        .iter()
        .find(|file| file.kind == kind)
        .ok_or_else(|| AppError::not_found(Noun::ImageFile, kind.as_str()))
}

fn check_files(request: &CreateImageRequest) -> Result<(), AppError> {
    validate::line(&request.description, "description", 1024)?;
    if let Some(append) = &request.append {
        validate::line(append, "append", 2048)?;
    }
    let mut kinds = BTreeMap::new();
    for (i, file) in request.files.iter().enumerate() {
        let field = format!("files[{i}]");
        if kinds.insert(file.kind, i).is_some() {
            return Err(AppError::invalid(
                field,
                format!("a second {}", file.kind.as_str()),
                "an image has one disk, and at most one kernel and one initrd",
            ));
        }
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if file.sha256.len() != 64 || !file.sha256.bytes().all(hexadecimal) {
            return Err(AppError::invalid(
                format!("{field}.sha256"),
                "not a SHA-256 checksum",
                "use 64 lower-case hexadecimal digits, as `sha256sum` prints them",
            ));
        }
        if file.size == Bytes::ZERO || file.size.0 > MAX_FILE {
            return Err(AppError::invalid(
                format!("{field}.size"),
                format!("{} is not a possible size", file.size),
                "name the file's true size",
            ));
        }
    }
    let has = |kind| kinds.contains_key(&kind);
    if !has(ImageFileKind::Disk) {
        return Err(AppError::invalid("files", "no disk", "an image has exactly one disk"));
    }
    if has(ImageFileKind::Initrd) && !has(ImageFileKind::Kernel) {
        return Err(AppError::invalid("files", "an initrd without a kernel", "add the kernel"));
    }
    if request.append.is_some() && !has(ImageFileKind::Kernel) {
        return Err(AppError::invalid(
            "append",
            "a kernel's command line without a kernel",
            "add the kernel, or leave it out",
        ));
    }
    Ok(())
}

fn log(txn: &mut Txn<'_>, image: &Image, kind: EventKind, message: &str) {
    let subject = Subject::Image { id: image.id, name: image.name.clone() };
    txn.event(Severity::Info, kind, subject, image.project, message.to_owned());
}
