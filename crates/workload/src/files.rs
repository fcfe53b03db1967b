//! Serves files: each operation opens one, reads all of it through the page cache, and checks it.
//!
//! The files are written once for each seed and size: a second run finds them. They are synced all at
//! once, so that the cache may drop every page of theirs.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::arguments::Common;
use crate::crew;
use crate::failure::Failure;
use crate::page::{self, PAGE, Page};
use crate::random::Draws;
use crate::report::Report;

/// Bytes read at a time, as a server sends them.
const CHUNK: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) common: Common,
    /// Bytes of all files; what is no whole file is left out, but one there is.
    pub(crate) size: u64,
    /// Bytes of one, rounded down to pages.
    pub(crate) file: u64,
    pub(crate) directory: PathBuf,
    /// Exponent of Zipf's law, 0 if all are alike.
    pub(crate) skew: f64,
    /// How many serve at the same time: while one waits for the disk, another goes on.
    pub(crate) threads: u64,
}

impl Options {
    fn pages(&self) -> u64 {
        self.file / PAGE as u64
    }

    fn count(&self) -> u64 {
        (self.size / self.file).max(1)
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut report = Report::new("files", options.common);
    let directory = prepare(options)?;
    report.ready()?;
    let directory = directory.as_path();
    let worker = |index: u64| {
        // All ask for the same files most, each in an order of its own.
        let mut draws = Draws::new(options.common.seed, options.count(), options.skew, index);
        let mut chunk = vec![0; CHUNK];
        move || serve(options, directory, draws.next(), &mut chunk)
    };
    crew::run(report, (0..options.threads).map(worker).collect())
}

/// Writes what is missing of the files, and gives their directory.
fn prepare(options: &Options) -> Result<PathBuf, Failure> {
    let name = format!("workload-{}-{}", options.common.seed, options.pages());
    let directory = options.directory.join(name);
    fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
    let mut written = false;
    for number in 0..options.count() {
        let path = directory.join(number.to_string());
        let length = fs::metadata(&path).map(|metadata| metadata.len()).ok();
        if length == Some(options.pages() * PAGE as u64) {
            continue;
        }
        // Under another name until it is whole: a run that was killed leaves no short file behind.
        let new = directory.join("new");
        write(options, &new, number).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("rename", &new))?;
        written = true;
    }
    if written {
        let synced = File::open(&directory).and_then(|file| Ok(rustix::fs::syncfs(file)?));
        synced.map_err(failed("sync", &directory))?;
    }
    Ok(directory)
}

fn write(options: &Options, path: &Path, number: u64) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(CHUNK, File::create(path)?);
    let mut bytes = [0; PAGE];
    for index in 0..options.pages() {
        let page = Page::new(options.common.seed, number * options.pages() + index);
        page::to_bytes(&page.0, &mut bytes);
        file.write_all(&bytes)?;
    }
    file.flush()
}

/// Reads a file to its end and checks every page. Gives its length.
fn serve(
    options: &Options,
    directory: &Path,
    number: u64,
    chunk: &mut [u8],
) -> Result<u64, Failure> {
    let path = directory.join(number.to_string());
    let mut file = File::open(&path).map_err(failed("open", &path))?;
    let corrupted =
        |index| Failure::Corrupted { what: format!("file {number}: page"), number: index };
    let mut index = 0;
    loop {
        let length = read_full(&mut file, chunk).map_err(failed("read", &path))?;
        let read = chunk.get(..length).unwrap_or_default();
        for bytes in read.chunks(PAGE) {
            let number = number * options.pages() + index;
            if !page::bytes_are_whole(bytes, options.common.seed, number) {
                return Err(corrupted(index));
            }
            index += 1;
        }
        if length < chunk.len() {
            break;
        }
    }
    if index == options.pages() { Ok(index * PAGE as u64) } else { Err(corrupted(index)) }
}

/// Fills the buffer, or as much of it as the file still has.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    fn options(directory: &Path) -> Options {
        let common = Common { limit: None, seed: 3 };
        Options {
            common,
            size: 1 << 20,
            file: 128 << 10,
            directory: directory.to_owned(),
            skew: 0.0,
            threads: 1,
        }
    }

    #[test]
    fn files_are_written_once_and_every_changed_byte_is_found() {
        let temporary = tempfile::tempdir().expect("a directory");
        let options = options(temporary.path());
        let directory = prepare(&options).expect("files");
        let mut chunk = vec![0; CHUNK];
        for number in 0..8 {
            assert_eq!(serve(&options, &directory, number, &mut chunk).expect("whole"), 128 << 10);
        }
        let path = directory.join("5");
        let mut file = File::options().write(true).open(&path).expect("a file");
        file.seek(SeekFrom::Start(70_000)).expect("seek");
        file.write_all(b"x").expect("write");
        // It is as long as it should be, so it is not written again.
        prepare(&options).expect("files");
        assert!(matches!(
            serve(&options, &directory, 5, &mut chunk),
            Err(Failure::Corrupted { number: 17, .. })
        ));
        file.set_len(64 << 10).expect("truncate");
        assert!(serve(&options, &directory, 5, &mut chunk).is_err());
        prepare(&options).expect("files");
        serve(&options, &directory, 5, &mut chunk).expect("written again");
    }
}
