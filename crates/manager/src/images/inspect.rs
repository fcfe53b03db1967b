//! Looks at a disk that somebody sent, before any QEMU opens it.
//!
//! A qcow2 file can name other files: a backing file, or one that holds its data. Opened on a host,
//! such an image would show the guest whatever file of the host it names. So the header is read here
//! first, and a file that names another is refused; only then does `qemu-img info` look at the rest,
//! with the format given (it shall not guess), in bounded time. Where `qemu-img` is not installed the
//! header alone decides: it holds all that is needed.

use std::{io, path::Path, process::Stdio, time::Duration};

use plimsoll_model::Bytes;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::AsyncReadExt as _;

const QEMU_IMG_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest description by `qemu-img`.
const OUTPUT_LIMIT: u64 = 1 << 20;
/// The largest disk: 64 TiB. Above, sums of sizes get near to limits.
const LARGEST: u64 = 64 << 40;

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// `qcow2` or `raw`.
    pub format: &'static str,
    /// The size that a guest sees.
    pub virtual_size: Bytes,
}

/// Why a disk cannot be used.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The file could not be read.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// Nothing in it.
    #[error("the disk is empty")]
    Empty,
    /// Larger than any disk may be.
    #[error("the disk's size of {size} bytes is above the limit of {LARGEST}")]
    TooLarge {
        /// Its size.
        size: u64,
    },
    /// A format of another hypervisor.
    #[error("the disk is of the format {format}; convert it with `qemu-img convert -O qcow2`")]
    Foreign {
        /// Which.
        format: &'static str,
    },
    /// A qcow2 header that is cut off or of an unknown version.
    #[error("the disk's qcow2 header is damaged or of an unknown version")]
    Damaged,
    /// It names another file.
    #[error(
        "the disk refers to another file ({what}); flatten it with `qemu-img convert -O qcow2`"
    )]
    RefersElsewhere {
        /// How.
        what: &'static str,
    },
    /// It is encrypted.
    #[error("the disk is encrypted; send it without encryption")]
    Encrypted,
    /// `qemu-img` could not be run.
    #[error("cannot run qemu-img")]
    Run(#[source] io::Error),
    /// `qemu-img` took too long.
    #[error("qemu-img has not described the disk within 30 s")]
    TimedOut,
    /// `qemu-img` refuses it.
    #[error("qemu-img cannot read the disk: {message}")]
    Refused {
        /// What it said.
        message: String,
    },
    /// `qemu-img` and the header disagree.
    #[error("qemu-img describes another disk than its header")]
    Disagree,
}

/// Says what the disk at `path` is, or why it cannot be used.
///
/// # Errors
/// See [`InspectError`].
pub async fn disk(path: &Path) -> Result<DiskFacts, InspectError> {
    let mut file = tokio::fs::File::open(path).await.map_err(InspectError::Read)?;
    let length = file.metadata().await.map_err(InspectError::Read)?.len();
    let mut head = Vec::with_capacity(512);
    (&mut file).take(512).read_to_end(&mut head).await.map_err(InspectError::Read)?;
    let facts = header(&head, length)?;
    if facts.format == "qcow2" {
        agrees(path, &facts).await?;
    }
    Ok(facts)
}

/// What the first bytes say.
fn header(head: &[u8], length: u64) -> Result<DiskFacts, InspectError> {
    const FOREIGN: [(&[u8], &str); 6] = [
        (b"KDMV", "VMDK"),
        (b"COWD", "VMDK"),
        (b"# Disk DescriptorFile", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"QED\0", "QED"),
    ];
    if length == 0 {
        return Err(InspectError::Empty);
    }
    if head.starts_with(b"QFI\xfb") {
        return qcow2(head);
    }
    if let Some((_, format)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(InspectError::Foreign { format });
    }
    if head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Err(InspectError::Foreign { format: "VDI" });
    }
    sized("raw", length.next_multiple_of(512))
}

const fn sized(format: &'static str, size: u64) -> Result<DiskFacts, InspectError> {
    match size {
        0 => Err(InspectError::Empty),
        1..=LARGEST => Ok(DiskFacts { format, virtual_size: Bytes(size) }),
        _ => Err(InspectError::TooLarge { size }),
    }
}

/// The header as `docs/interop/qcow2` of QEMU has it, all numbers big-endian.
fn qcow2(head: &[u8]) -> Result<DiskFacts, InspectError> {
    const EXTERNAL_DATA: u64 = 1 << 2;
    const CORRUPT: u64 = 1 << 1;
    let word = |at: usize| -> Result<u32, InspectError> {
        let bytes = head.get(at..at + 4).ok_or(InspectError::Damaged)?;
        bytes.try_into().map(u32::from_be_bytes).map_err(|_| InspectError::Damaged)
    };
    let long = |at: usize| Ok(u64::from(word(at)?) << 32 | u64::from(word(at + 4)?));
    let version = word(4)?;
    if !(2..=3).contains(&version) {
        return Err(InspectError::Damaged);
    }
    if long(8)? != 0 {
        return Err(InspectError::RefersElsewhere { what: "a backing file" });
    }
    if word(32)? != 0 {
        return Err(InspectError::Encrypted);
    }
    if version == 3 {
        let incompatible = long(72)?;
        if incompatible & EXTERNAL_DATA != 0 {
            return Err(InspectError::RefersElsewhere { what: "an external data file" });
        }
        if incompatible & CORRUPT != 0 {
            return Err(InspectError::Damaged);
        }
    }
    sized("qcow2", long(24)?)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    format_specific: Option<FormatSpecific>,
}

#[derive(Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: serde_json::Map<String, serde_json::Value>,
}

/// Whether `qemu-img` sees the same disk.
async fn agrees(path: &Path, facts: &DiskFacts) -> Result<(), InspectError> {
    let spawned = tokio::process::Command::new("qemu-img")
        .args(["info", "--output=json", "-f", facts.format])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!("qemu-img is not installed here: the disk's header alone was checked");
            return Ok(());
        }
        other => other.map_err(InspectError::Run)?,
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read_out = async {
            match stdout {
                Some(pipe) => pipe.take(OUTPUT_LIMIT).read_to_end(&mut out).await,
                None => Ok(0),
            }
        };
        let read_err = async {
            match stderr {
                Some(pipe) => pipe.take(4096).read_to_end(&mut err).await,
                None => Ok(0),
            }
        };
        tokio::try_join!(read_out, read_err)?;
        let status = child.wait().await?;
        io::Result::Ok((status, out, err))
    };
    let (status, out, err) = tokio::time::timeout(QEMU_IMG_TIMEOUT, run)
        .await
        .map_err(|_| InspectError::TimedOut)?
        .map_err(InspectError::Run)?;
    if !status.success() {
        let text = String::from_utf8_lossy(&err);
        // Its message begins with a path of the manager, which is nobody's business.
        let message = text.rsplit("': ").next().unwrap_or_default().trim().chars().take(300);
        return Err(InspectError::Refused { message: message.collect() });
    }
    let seen: Description = serde_json::from_slice(&out).map_err(|_| InspectError::Disagree)?;
    let elsewhere = seen.backing_filename.is_some()
        || seen.format_specific.is_some_and(|specific| specific.data.contains_key("data-file"));
    if elsewhere {
        return Err(InspectError::RefersElsewhere { what: "found by qemu-img" });
    }
    if seen.format == facts.format && seen.virtual_size == facts.virtual_size.0 {
        Ok(())
    } else {
        Err(InspectError::Disagree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: u32) -> Vec<u8> {
        let mut head = vec![0; 112];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        head
    }

    #[test]
    fn headers_tell_size_and_danger() {
        assert_eq!(header(&image(3), 9).unwrap().virtual_size, Bytes::gib(1));
        let mut backed = image(2);
        backed[15] = 1;
        assert!(matches!(header(&backed, 9), Err(InspectError::RefersElsewhere { .. })));
        let mut external = image(3);
        external[79] = 4;
        assert!(matches!(header(&external, 9), Err(InspectError::RefersElsewhere { .. })));
        let mut encrypted = image(3);
        encrypted[35] = 1;
        assert!(matches!(header(&encrypted, 9), Err(InspectError::Encrypted)));
        assert!(matches!(header(&image(4), 9), Err(InspectError::Damaged)));
        assert!(matches!(header(b"KDMV", 4), Err(InspectError::Foreign { .. })));
        assert!(matches!(header(b"", 0), Err(InspectError::Empty)));
        assert_eq!(header(b"x", 513).unwrap().virtual_size, Bytes(1024));
        for cut in 4..80 {
            let _ = header(&image(3)[..cut], 9);
        }
    }
}
