//! Images: what VMs boot from.

use serde::{Deserialize, Serialize};

use crate::{
    Timestamp,
    id::{ImageId, ProjectId},
    name::Name,
    units::Bytes,
};

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ImageFileKind {
    /// The disk, in qcow2 or raw form.
    Disk,
    /// A kernel that QEMU loads itself, without a boot loader.
    Kernel,
    /// The initial RAM disk that goes with the kernel.
    Initrd,
}

impl ImageFileKind {
    /// The name in paths and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
        }
    }
}

/// A file of an image, known by its checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageFile {
    /// Which part it is.
    pub kind: ImageFileKind,
    /// SHA-256, as 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Its length.
    pub size: Bytes,
}

/// Where an image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ImagePhase {
    /// Files are missing.
    Uploading,
    /// Every file is there and its checksum was verified.
    Ready,
}

/// An image. Its files never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its project; without, every project may use it.
    pub project: Option<ProjectId>,
    /// Its name, unique in the project or among the public ones.
    pub name: Name,
    /// One line about it.
    #[serde(default)]
    pub description: String,
    /// Its parts; exactly one disk.
    pub files: Vec<ImageFile>,
    /// The kernel's command line, where there is a kernel.
    #[serde(default)]
    pub append: Option<String>,
    /// The disk's virtual size: VMs need at least this much. Zero until the disk is there.
    pub disk_size: Bytes,
    /// The format of the disk: `qcow2` or `raw`.
    pub disk_format: String,
    /// The least memory with which it boots.
    pub min_memory: Bytes,
    /// Whether it brings the guest agent.
    pub guest_agent: bool,
    /// Where it stands.
    pub phase: ImagePhase,
    /// When it was created.
    pub created_at: Timestamp,
}
