//! A text by lines, with the place of everything in it.

use std::io::{self, BufRead};

use plimsoll_model::MilliCores;

use super::{Found, Limits, Place, ReadError};

/// The lines of a text: bounded in length, together too, and each with its number.
#[derive(Debug)]
pub struct Lines<R> {
    file: String,
    reader: R,
    line: u64,
    ended: bool,
    buffer: Vec<u8>,
    /// How much of the buffer was given out by words.
    cursor: usize,
    line_limit: usize,
    limit: u64,
    left: u64,
}

/// One line without its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) file: &'a str,
    pub(super) number: u64,
    pub(super) text: &'a str,
}

/// A part of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<'a> {
    pub(super) line: Line<'a>,
    /// In bytes from 0.
    pub(super) start: usize,
    pub(super) text: &'a str,
}

impl<R: BufRead> Lines<R> {
    /// The lines of what is read, which errors call `file`.
    pub fn new(file: String, reader: R, limits: &Limits) -> Self {
        Self {
            file,
            reader,
            line: 0,
            ended: false,
            buffer: Vec::new(),
            cursor: 0,
            line_limit: limits.line_bytes,
            limit: limits.bytes,
            left: limits.bytes,
        }
    }

    /// The next line on which there is something.
    pub(super) fn next_filled_line(&mut self) -> Result<Option<Line<'_>>, ReadError> {
        while self.fill()? {
            if !self.buffer.trim_ascii().is_empty() {
                return self.current().map(Some);
            }
        }
        Ok(None)
    }

    /// The next line, which must be there.
    pub(super) fn expect_line(&mut self, expected: &str) -> Result<Line<'_>, ReadError> {
        if self.fill()? {
            return self.current();
        }
        Err(ReadError::Unexpected {
            place: self.place(0),
            expected: expected.to_owned(),
            found: Found::EndOfFile,
        })
    }

    /// The next word, on this line or on one that follows, for files in which lines mean nothing.
    pub(super) fn next_word(&mut self) -> Result<Option<Cell<'_>>, ReadError> {
        if self.find_word()? { self.word().map(Some) } else { Ok(None) }
    }

    /// The next word, which must be there.
    pub(super) fn expect_word(&mut self, expected: &str) -> Result<Cell<'_>, ReadError> {
        if self.find_word()? {
            return self.word();
        }
        Err(ReadError::Unexpected {
            place: self.place(0),
            expected: expected.to_owned(),
            found: Found::EndOfFile,
        })
    }

    /// Goes on to where a word begins; false at the end of the file.
    fn find_word(&mut self) -> Result<bool, ReadError> {
        loop {
            let rest = &self.buffer[self.cursor..];
            if let Some(at) = rest.iter().position(|byte| !byte.is_ascii_whitespace()) {
                self.cursor += at;
                return Ok(true);
            }
            if !self.fill()? {
                return Ok(false);
            }
        }
    }

    /// The word that begins here.
    fn word(&mut self) -> Result<Cell<'_>, ReadError> {
        let start = self.cursor;
        let rest = &self.buffer[start..];
        let length = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        self.cursor = start + length;
        match std::str::from_utf8(&self.buffer[start..self.cursor]) {
            Ok(text) => {
                let line = Line { file: &self.file, number: self.line, text };
                Ok(line.cell(start, text))
            }
            Err(error) => Err(ReadError::Unexpected {
                place: self.place(start + error.valid_up_to()),
                expected: "text".to_owned(),
                found: Found::NotText,
            }),
        }
    }

    /// Reads a line into the buffer; false at the end of the file.
    fn fill(&mut self) -> Result<bool, ReadError> {
        self.buffer.clear();
        self.cursor = 0;
        // The end of the file is on the line after the last one, however often it is asked for.
        self.line += u64::from(!self.ended);
        let ended = loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(ReadError::Read { place: self.place(self.buffer.len()), source });
                }
            };
            if available.is_empty() {
                break false;
            }
            let (part, ended) = match available.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&available[..at], true),
                None => (available, false),
            };
            let used = part.len() + usize::from(ended);
            if self.buffer.len() + part.len() > self.line_limit {
                return Err(ReadError::TooMuch {
                    place: self.place(self.line_limit),
                    what: "bytes in a line",
                    limit: self.line_limit as u64,
                });
            }
            let Some(left) = self.left.checked_sub(used as u64) else {
                return Err(ReadError::TooMuch {
                    place: self.place(self.buffer.len()),
                    what: "bytes in the file when it is unpacked",
                    limit: self.limit,
                });
            };
            self.left = left;
            self.buffer.extend_from_slice(part);
            self.reader.consume(used);
            if ended {
                break true;
            }
        };
        if !ended && self.buffer.is_empty() {
            self.ended = true;
            return Ok(false);
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        Ok(true)
    }

    fn current(&self) -> Result<Line<'_>, ReadError> {
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Line { file: &self.file, number: self.line, text }),
            Err(error) => Err(ReadError::Unexpected {
                place: self.place(error.valid_up_to()),
                expected: "text".to_owned(),
                found: Found::NotText,
            }),
        }
    }

    /// What errors call the file.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    fn place(&self, offset: usize) -> Place {
        Place { file: self.file.clone(), line: self.line, column: offset + 1 }
    }
}

impl<'a> Line<'a> {
    /// A part of this line.
    pub(super) const fn cell(self, start: usize, text: &'a str) -> Cell<'a> {
        Cell { line: self, start, text }
    }

    /// The parts that white space separates.
    pub(super) fn words(self) -> impl Iterator<Item = Cell<'a>> {
        self.split(|byte| byte.is_ascii_whitespace()).filter(|cell| !cell.text.is_empty())
    }

    /// The parts between separators, which are single ASCII bytes.
    pub(super) fn split(self, separates: impl Fn(u8) -> bool) -> impl Iterator<Item = Cell<'a>> {
        let mut rest = Some(0);
        std::iter::from_fn(move || {
            let start = rest?;
            let tail = &self.text[start..];
            let length = tail.bytes().position(&separates);
            rest = length.map(|length| start + length + 1);
            Some(self.cell(start, length.map_or(tail, |length| &tail[..length])))
        })
    }

    /// The error that the line ends too early.
    pub(super) fn too_short(self, expected: &str) -> ReadError {
        ReadError::Unexpected {
            place: self.place(self.text.len()),
            expected: expected.to_owned(),
            found: Found::EndOfLine,
        }
    }

    /// A place in this line, the offset in bytes from 0.
    pub(super) fn place(self, offset: usize) -> Place {
        Place { file: self.file.to_owned(), line: self.number, column: offset + 1 }
    }
}

impl Cell<'_> {
    /// The error that this is not what was expected.
    pub(super) fn unexpected(&self, expected: impl Into<String>) -> ReadError {
        ReadError::Unexpected {
            place: self.line.place(self.start),
            expected: expected.into(),
            found: Found::text(self.text),
        }
    }

    /// The error that there is more than the limit of something.
    pub(super) fn too_much(&self, what: &'static str, limit: usize) -> ReadError {
        let place = self.line.place(self.start);
        ReadError::TooMuch { place, what, limit: limit as u64 }
    }

    /// Thousandths of a decimal number, such as 2 or 0.5; `None` for anything else.
    pub(super) fn thousandths(&self) -> Option<u64> {
        let is_decimal = self.text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let parsed: MilliCores = is_decimal.then(|| self.text.parse().ok()).flatten()?;
        Some(parsed.0)
    }

    /// A whole number in a range; `what` says of what.
    pub(super) fn number(&self, what: &str, least: u64, most: u64) -> Result<u64, ReadError> {
        let number = self.text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| match (least, most) {
            (0, u64::MAX) => self.unexpected(format!("{what}, a whole number")),
            (1, u64::MAX) => self.unexpected(format!("{what}, a whole number above 0")),
            _ => self.unexpected(format!("{what}, a whole number from {least} to {most}")),
        })
    }
}
