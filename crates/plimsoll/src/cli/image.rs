//! `plimsoll image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use plimsoll_model::{Bytes, Name};

/// Images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List the images that the project can use
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  plimsoll image list"
    )]
    List,
    /// Import an image from a directory with an image.toml, or from files
    #[command(after_help = "\
A directory holds `image.toml` (as `images/build` writes it) and the files that it names.
An image that has the same files already is left as it is.

Examples:
  plimsoll image import .build/images/tiny --public
  plimsoll image import --name bookworm --disk debian-12-generic.qcow2 --min-memory 512MiB")]
    Import(Box<ImageImportArgs>),
    /// Show an image
    #[command(after_help = "\
Examples:
  plimsoll image show tiny")]
    Show(ImageNameArgs),
    /// Delete an image that no VM uses
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  plimsoll image delete bookworm"
    )]
    Delete(ImageDeleteArgs),
}

/// An image.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImageNameArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) name: Name,
    /// The public one, not the project's
    #[arg(long)]
    pub(crate) public: bool,
}

/// Deletes an image.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImageDeleteArgs {
    #[command(flatten)]
    pub(crate) image: ImageNameArgs,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
}

/// Imports an image.
#[derive(Clone, Debug, Args)]
#[group(id = "source", required = true, multiple = false, args = ["directory", "disk"])]
pub(crate) struct ImageImportArgs {
    /// The directory with image.toml
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Its name; by default the one in image.toml
    #[arg(long, value_name = "NAME", required_unless_present = "directory")]
    pub(crate) name: Option<Name>,
    /// Let every project use it
    #[arg(long)]
    pub(crate) public: bool,
    /// The disk, in qcow2 or raw form
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Option<PathBuf>,
    /// The kernel, for an image without a boot loader
    #[arg(long, value_name = "FILE", requires = "disk")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub(crate) append: Option<String>,
    /// One line about it
    #[arg(long, value_name = "TEXT", requires = "disk")]
    pub(crate) description: Option<String>,
    /// The least memory with which it boots
    #[arg(long, value_name = "SIZE", requires = "disk")]
    pub(crate) min_memory: Option<Bytes>,
    /// It brings Plimsoll's guest agent
    #[arg(long, requires = "disk")]
    pub(crate) guest_agent: bool,
}
