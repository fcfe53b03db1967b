//! Checksums of image files, read as a stream.

use std::{
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use sha2::{Digest as _, Sha256};
use std::fs;

use super::DiskError;

/// A SHA-256, printed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sha256Digest(pub [u8; 32]);

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Sha256Digest {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || DiskError::NotAChecksum { text: text.chars().take(80).collect() };
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(digest))
    }
}

/// The checksum of a file. Runs beside the async tasks; a gigabyte takes about a second.
///
/// # Errors
/// [`DiskError::Read`].
pub async fn sha256_of(path: PathBuf) -> Result<Sha256Digest, DiskError> {
    let cancelled = DiskError::Cancelled { path: path.clone() };
    tokio::task::spawn_blocking(move || digest(&path)).await.map_err(|_| cancelled)?
}

/// Checks a file against its checksum.
///
/// # Errors
/// [`DiskError::Checksum`] with both sums, [`DiskError::Read`].
pub async fn verify_sha256(path: PathBuf, expected: Sha256Digest) -> Result<(), DiskError> {
    let actual = sha256_of(path.clone()).await?;
    if actual == expected { Ok(()) } else { Err(DiskError::Checksum { path, expected, actual }) }
}

fn digest(path: &Path) -> Result<Sha256Digest, DiskError> {
    let failed = |source| DiskError::Read { path: path.to_owned(), source };
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(Sha256Digest(hasher.finalize().into())),
            count => hasher.update(&buffer[..count]),
        }
    }
}
