//! Images on this machine, and their way to the manager: announced with checksums, then sent file by
//! file. An import that was cut off goes on where it stopped.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use fs_err as fs;
use plimsoll_api::{Client, ErrorCode, v1::CreateImageRequest};
use plimsoll_model::{Bytes, Image, ImageFile, ImageFileKind, ImagePhase, Name};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    failure::{Failure, OrFail as _, Outcome},
    output::progress::Progress,
};

/// The longest `image.toml`.
const LONGEST_MANIFEST: u64 = 64 << 10;

/// `image.toml`, as `images/build` writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: Name,
    #[serde(default)]
    description: String,
    disk: PathBuf,
    #[serde(default)]
    kernel: Option<PathBuf>,
    #[serde(default)]
    initrd: Option<PathBuf>,
    #[serde(default)]
    append: Option<String>,
    #[serde(default)]
    min_memory: Bytes,
    #[serde(default)]
    guest_agent: bool,
    /// Checksums by file name.
    #[serde(default)]
    sha256: std::collections::BTreeMap<String, String>,
}

/// An image on this machine.
#[derive(Clone, Debug)]
pub(crate) struct LocalImage {
    /// What is announced.
    pub(crate) request: CreateImageRequest,
    paths: Vec<(ImageFileKind, PathBuf)>,
}

/// What is said about an image that has no `image.toml`.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) name: Name,
    pub(crate) description: String,
    pub(crate) disk: PathBuf,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) append: Option<String>,
    pub(crate) min_memory: Bytes,
    pub(crate) guest_agent: bool,
}

impl LocalImage {
    /// The name in a directory's `image.toml`, without looking at its files.
    pub(crate) fn name_in(directory: &Path) -> Outcome<Name> {
        Ok(manifest(directory)?.name)
    }

    /// Reads a directory with an `image.toml`, and checks its files against the checksums there.
    pub(crate) fn open(directory: &Path, name: Option<&Name>) -> Outcome<Self> {
        let manifest = manifest(directory)?;
        let image = Self::describe(Described {
            name: name.cloned().unwrap_or(manifest.name),
            description: manifest.description,
            disk: directory.join(&manifest.disk),
            kernel: manifest.kernel.as_ref().map(|path| directory.join(path)),
            initrd: manifest.initrd.as_ref().map(|path| directory.join(path)),
            append: manifest.append,
            min_memory: manifest.min_memory,
            guest_agent: manifest.guest_agent,
        })?;
        for ((_, path), file) in image.paths.iter().zip(&image.request.files) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(expected) = name.as_ref().and_then(|name| manifest.sha256.get(name)) else {
                continue;
            };
            if *expected != file.sha256 {
                return Err(Failure::new(format!(
                    "its checksum is {}, not {expected}",
                    file.sha256
                ))
                .context(format!("{} is damaged", path.display()))
                .hint("build the image again, or fetch it again"));
            }
        }
        Ok(image)
    }

    /// Looks at the files of an image.
    pub(crate) fn describe(described: Described) -> Outcome<Self> {
        let mut paths = vec![(ImageFileKind::Disk, described.disk)];
        paths.extend(described.kernel.map(|path| (ImageFileKind::Kernel, path)));
        paths.extend(described.initrd.map(|path| (ImageFileKind::Initrd, path)));
        let files = paths
            .iter()
            .map(|(kind, path)| {
                let (sha256, size) =
                    digest(path).or_usage(|| format!("cannot read the {}", kind.as_str()))?;
                Ok(ImageFile { kind: *kind, sha256, size: Bytes(size) })
            })
            .collect::<Outcome<Vec<_>>>()?;
        Ok(Self {
            request: CreateImageRequest {
                name: described.name,
                description: described.description,
                files,
                append: described.append,
                min_memory: described.min_memory,
                guest_agent: described.guest_agent,
            },
            paths,
        })
    }

    /// Brings it to the manager, for a project or (without one) for all.
    pub(crate) async fn import(
        &self,
        client: &Client,
        project: Option<&Name>,
        progress: &Progress,
    ) -> Outcome<Image> {
        let name = &self.request.name;
        let what = || format!("cannot import image `{name}`");
        progress.set(format!("importing image {name}"));
        let mut image = match client.create_image(project, &self.request).await {
            Ok(image) => image,
            Err(error) if error.code() == Some(ErrorCode::AlreadyExists) => {
                let there = client.image(project, name).await.or_fail(what)?;
                self.same_as(&there).or_fail(what)?;
                there
            }
            Err(error) => return Err(error).or_fail(what),
        };
        if image.phase == ImagePhase::Ready {
            return Ok(image);
        }
        for ((kind, path), file) in self.paths.iter().zip(&self.request.files) {
            progress.set(format!("importing image {name}: {} ({})", kind.as_str(), file.size));
            let from = tokio::fs::File::open(path).await.or_fail(what)?;
            image = client
                .put_image_file(project, name, *kind, from, file.size.0)
                .await
                .or_fail(what)?;
        }
        Ok(image)
    }

    fn same_as(&self, there: &Image) -> Outcome {
        let sums = |files: &[ImageFile]| {
            let mut sums: Vec<_> = files.iter().map(|f| (f.kind, f.sha256.clone())).collect();
            sums.sort();
            sums
        };
        if sums(&there.files) == sums(&self.request.files) {
            return Ok(());
        }
        Err(Failure::new("there is one of this name with other files")
            .hint("delete it first, or import this one under another --name"))
    }
}

fn manifest(directory: &Path) -> Outcome<Manifest> {
    let path = directory.join("image.toml");
    let what = || format!("cannot use {} as an image", directory.display());
    let hint = "a directory that `images/build` made has an image.toml; or name files with --disk";
    let mut text = String::new();
    fs::File::open(&path)
        .and_then(|file| file.take(LONGEST_MANIFEST).read_to_string(&mut text))
        .or_usage(what)
        .map_err(|failure| failure.hint(hint))?;
    let manifest: Manifest = toml::from_str(&text).or_usage(what)?;
    let files = [Some(&manifest.disk), manifest.kernel.as_ref(), manifest.initrd.as_ref()];
    for file in files.into_iter().flatten() {
        if file.components().count() != 1 || file.file_name().is_none() {
            return Err(Failure::usage(format!("`{}` is not the name of a file", file.display()))
                .context(what())
                .hint("image.toml names files that lie beside it"));
        }
    }
    Ok(manifest)
}

/// SHA-256 in hex, and the length.
fn digest(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0_u64;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
    let hex = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((hex, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_directory_is_read_and_its_checksums_are_verified() {
        let directory = tempfile::tempdir().unwrap();
        let write = |sum: &str| {
            let text =
                format!("name = \"x\"\ndisk = \"disk.raw\"\n[sha256]\n\"disk.raw\" = \"{sum}\"\n");
            fs::write(directory.path().join("image.toml"), text).unwrap();
        };
        fs::write(directory.path().join("disk.raw"), "").unwrap();
        write(EMPTY);
        let image = LocalImage::open(directory.path(), None).unwrap();
        assert_eq!(image.request.files[0].sha256, EMPTY);
        write("00");
        let failure = LocalImage::open(directory.path(), None).unwrap_err();
        assert!(failure.render().unwrap().contains("is damaged"));
    }

    #[test]
    fn a_manifest_cannot_name_files_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        for disk in ["/etc/passwd", "../disk", ".."] {
            let text = format!("name = \"x\"\ndisk = \"{disk}\"\n");
            fs::write(directory.path().join("image.toml"), text).unwrap();
            let failure = LocalImage::open(directory.path(), None).unwrap_err();
            assert_eq!(failure.exit_code(), crate::failure::USAGE, "{disk}");
        }
    }
}
