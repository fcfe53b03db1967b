//! Vector bin packing instances in the `.vbp` text format.
//!
//! ```text
//! 2            dimensions
//! 100 100      the capacity of a bin in each
//! 3            lines that follow
//! 51 10 2      an item's sizes, and how many there are of it
//! ```

use std::{
    fs,
    io::{self, BufReader, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use plimsoll_placement::packing::{Instance, Item};

use super::{
    Limits, Lines, Place, ReadError, archive,
    lines::Line,
    source::{self, Source},
};

/// How deep directories are searched.
const DEPTH: usize = 16;

/// An instance and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The file, as the user named it; of one in an archive, the archive's name, `/` and its own.
    pub file: String,
    /// What it says.
    pub instance: Instance,
}

/// Reads every instance of a path, which is a `.vbp` file, a directory with such files, a `.tar` or
/// `.tar.xz` archive of them, or a folder inside an archive (`all.tar.xz/small`). Directories go by
/// name, archives as they are. Nothing is read any more after `each` said `Break`.
///
/// # Errors
/// The first thing that is wrong. What was read before has been given to `each`.
pub fn for_each(
    path: &Path,
    limits: &Limits,
    each: &mut dyn FnMut(Named) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    if path.is_dir() {
        let mut files = Vec::new();
        collect(path, DEPTH, limits, &mut files)?;
        if files.is_empty() {
            return Err(nothing(&path.display().to_string()));
        }
        files.sort();
        for file in files {
            if one(&file, limits, each)?.is_break() {
                break;
            }
        }
        return Ok(());
    }
    match archive::archive_of(path) {
        Some((archive, inside)) => members(&archive, inside.as_deref(), limits, each),
        None => one(path, limits, each).map(|_| ()),
    }
}

/// Reads one instance.
///
/// # Errors
/// The first thing that is wrong.
pub fn read<R: io::BufRead>(lines: &mut Lines<R>, limits: &Limits) -> Result<Instance, ReadError> {
    let line = lines.expect_line("the number of dimensions")?;
    let [dimensions] = numbers(line, 1, "the number of dimensions", 1)?[..] else {
        return Err(line.too_short("the number of dimensions"));
    };
    let dimensions = usize::try_from(dimensions).unwrap_or(usize::MAX);
    if dimensions > limits.dimensions {
        return Err(line.cell(0, "").too_much("dimensions", limits.dimensions));
    }
    let line = lines.expect_line("the capacity in each dimension")?;
    let capacity = numbers(line, dimensions, "a capacity", 1)?;
    let line = lines.expect_line("the number of items that follow")?;
    let [count] = numbers(line, 1, "the number of items that follow", 0)?[..] else {
        return Err(line.too_short("the number of items that follow"));
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > limits.records {
        return Err(line.cell(0, "").too_much("items", limits.records));
    }
    // Not with_capacity(count): the file may lie about what follows.
    let mut items = Vec::new();
    for _ in 0..count {
        let line = lines.expect_line("an item's sizes and how many there are of it")?;
        items.push(item(line, &capacity)?);
    }
    if let Some(line) = lines.next_filled_line()? {
        return Err(line.cell(0, line.text).unexpected(format!("no more than {count} items")));
    }
    Instance::new(capacity, items)
        .map_err(|source| ReadError::Instance { file: lines.file().to_owned(), source })
}

fn item(line: Line<'_>, capacity: &[u64]) -> Result<Item, ReadError> {
    let mut sizes = Vec::with_capacity(capacity.len());
    let mut words = line.words();
    for most in capacity {
        let word = words.next().ok_or_else(|| line.too_short("an item's size"))?;
        sizes.push(word.number("an item's size", 0, *most)?);
    }
    let word = words.next().ok_or_else(|| line.too_short("how many there are of the item"))?;
    let count = word.number("how many there are of the item", 0, u64::from(u32::MAX))?;
    match words.next() {
        Some(word) => Err(word.unexpected("the end of the line")),
        None => Ok(Item { sizes, count }),
    }
}

/// So many numbers, all that is on the line.
fn numbers(line: Line<'_>, count: usize, what: &str, least: u64) -> Result<Vec<u64>, ReadError> {
    let mut numbers = Vec::new();
    for word in line.words() {
        if numbers.len() == count {
            return Err(word.unexpected("the end of the line"));
        }
        numbers.push(word.number(what, least, u64::MAX)?);
    }
    if numbers.len() < count { Err(line.too_short(what)) } else { Ok(numbers) }
}

fn one(
    path: &Path,
    limits: &Limits,
    each: &mut dyn FnMut(Named) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ReadError> {
    let instance = read(&mut source::lines(path, limits)?, limits)?;
    Ok(each(Named { file: path.display().to_string(), instance }))
}

/// The `.vbp` files below a directory.
fn collect(
    directory: &Path,
    depth: usize,
    limits: &Limits,
    files: &mut Vec<PathBuf>,
) -> Result<(), ReadError> {
    let failed = |source| ReadError::Open { file: directory.display().to_string(), source };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        // A link to a directory is not followed: it may lead back.
        if entry.file_type().map_err(failed)?.is_dir() {
            if depth > 0 {
                collect(&path, depth - 1, limits, files)?;
            }
        } else if is_instance(&path) {
            if files.len() >= limits.records {
                let place = Place { file: directory.display().to_string(), line: 1, column: 1 };
                let limit = limits.records as u64;
                return Err(ReadError::TooMuch { place, what: "files", limit });
            }
            files.push(path);
        }
    }
    Ok(())
}

fn is_instance(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "vbp")
}

fn members(
    path: &Path,
    inside: Option<&Path>,
    limits: &Limits,
    each: &mut dyn FnMut(Named) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    archive(&path.display().to_string(), Source::open(path, limits)?, inside, limits, each)
}

/// Reads the instances of a `.tar` archive, or of a folder inside it. Errors call it `file`.
///
/// # Errors
/// The first thing that is wrong, or that there is no instance.
pub fn archive(
    file: &str,
    reader: impl Read,
    inside: Option<&Path>,
    limits: &Limits,
    each: &mut dyn FnMut(Named) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let mut found = false;
    archive::members(file, reader, limits, &mut |name, entry| {
        if !is_instance(name) || inside.is_some_and(|inside| !name.starts_with(inside)) {
            return Ok(ControlFlow::Continue(()));
        }
        found = true;
        let member = format!("{file}/{}", name.display());
        let mut lines = Lines::new(member.clone(), BufReader::new(entry), limits);
        let instance = read(&mut lines, limits)?;
        Ok(each(Named { file: member, instance }))
    })?;
    if found { Ok(()) } else { Err(nothing(file)) }
}

fn nothing(file: &str) -> ReadError {
    ReadError::Nothing { file: file.to_owned(), wanted: "`.vbp` file" }
}
