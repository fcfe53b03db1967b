//! Opens files, plain or compressed with xz, and bounds what comes out of them.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Chain, Cursor, Read},
    path::Path,
};

use liblzma::{
    bufread::XzDecoder,
    stream::{CONCATENATED, Stream},
};

use super::{Limits, Lines, ReadError};

/// With what every xz file begins.
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];

type Opened = BufReader<Chain<Cursor<Vec<u8>>, File>>;

/// A file's bytes, unpacked.
pub(super) enum Source {
    Plain(Opened),
    Xz(Box<BufReader<XzDecoder<Opened>>>),
}

impl Source {
    /// Opens a file. Whether it is compressed is told by how it begins, not by its name.
    pub(super) fn open(path: &Path, limits: &Limits) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { file: path.display().to_string(), source };
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let mut head = Vec::with_capacity(XZ_MAGIC.len());
        file.by_ref().take(XZ_MAGIC.len() as u64).read_to_end(&mut head).map_err(failed)?;
        let packed = head == XZ_MAGIC;
        let opened = BufReader::new(Cursor::new(head).chain(file));
        if !packed {
            return Ok(Self::Plain(opened));
        }
        let stream = Stream::new_stream_decoder(limits.unpacking_bytes, CONCATENATED)
            .map_err(|source| failed(source.into()))?;
        Ok(Self::Xz(Box::new(BufReader::new(XzDecoder::new_stream(opened, stream)))))
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buf),
            Self::Xz(reader) => reader.read(buf),
        }
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Plain(reader) => reader.fill_buf(),
            Self::Xz(reader) => reader.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        match self {
            Self::Plain(reader) => reader.consume(amount),
            Self::Xz(reader) => reader.consume(amount),
        }
    }
}

/// The lines of a file, plain or compressed.
pub(super) fn lines(path: &Path, limits: &Limits) -> Result<Lines<Source>, ReadError> {
    Ok(Lines::new(path.display().to_string(), Source::open(path, limits)?, limits))
}

/// Reads so many bytes at most, and fails where there are more.
pub(super) struct Capped<R> {
    reader: R,
    limit: u64,
    left: u64,
}

impl<R> Capped<R> {
    pub(super) const fn new(reader: R, limit: u64) -> Self {
        Self { reader, limit, left: limit }
    }
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let limit = self.limit;
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("there are more than {limit} bytes in it when it is unpacked"),
            )
        })?;
        Ok(read)
    }
}
