//! Comma-separated values by line, with the place of every cell.

use std::io::BufRead;

use csv_core::ReadFieldResult;

use super::{
    Found, Lines, ReadError,
    lines::{Cell, Line},
};

/// The most columns of a table.
const COLUMNS: usize = 256;

/// A table with a title line. Quoted cells are understood; one that spans lines is refused.
pub(super) struct Table<R> {
    lines: Lines<R>,
    titles: Vec<String>,
    // Building one compiles its tables: once for each file.
    parser: csv_core::Reader,
}

/// The cells of a line without their quotes, and where each begins.
struct Fields {
    text: String,
    /// (where it begins in the line, where it ends in `text`).
    ends: Vec<(usize, usize)>,
}

/// One line of a table.
pub(super) struct Row<'a> {
    line: Line<'a>,
    fields: Fields,
    titles: &'a [String],
}

impl<R: BufRead> Table<R> {
    /// Reads the titles, among which must be all of `required`.
    pub(super) fn new(mut lines: Lines<R>, required: &[&str]) -> Result<Self, ReadError> {
        let wanted = format!("the titles {}", required.join(","));
        let line = lines.expect_line(&wanted)?;
        let mut parser = csv_core::ReaderBuilder::new().build();
        let fields = Fields::of(line, &mut parser)?;
        for title in required {
            if !fields.iter().any(|(_, text)| text == *title) {
                return Err(ReadError::Unexpected {
                    place: line.place(0),
                    expected: format!("the titles {}, with `{title}`", required.join(",")),
                    found: Found::text(line.text),
                });
            }
        }
        let titles = fields.iter().map(|(_, text)| text.to_owned()).collect();
        Ok(Self { lines, titles, parser })
    }

    /// The next line that is not empty.
    pub(super) fn next_row(&mut self) -> Result<Option<Row<'_>>, ReadError> {
        let Some(line) = self.lines.next_filled_line()? else { return Ok(None) };
        let fields = Fields::of(line, &mut self.parser)?;
        let titles = &self.titles;
        if fields.ends.len() != titles.len() {
            let expected = format!("{} cells as in the first line", titles.len());
            let (at, text) = fields.iter().nth(titles.len()).unwrap_or((line.text.len(), ""));
            return Err(if fields.ends.len() < titles.len() {
                line.too_short(&expected)
            } else {
                line.cell(at, text).unexpected(expected)
            });
        }
        Ok(Some(Row { line, fields, titles }))
    }
}

impl Row<'_> {
    /// The cell of a column, if the table has it.
    pub(super) fn get(&self, title: &str) -> Option<Cell<'_>> {
        let index = self.titles.iter().position(|known| known == title)?;
        let (start, text) = self.fields.iter().nth(index)?;
        Some(self.line.cell(start, text))
    }

    /// The cell of a column that [`Table::new`] required.
    pub(super) fn cell(&self, title: &str) -> Result<Cell<'_>, ReadError> {
        self.get(title).ok_or_else(|| self.line.too_short(title))
    }

    /// The error that this line is one too many.
    pub(super) fn too_much(&self, what: &'static str, limit: usize) -> ReadError {
        self.line.cell(0, "").too_much(what, limit)
    }
}

impl Fields {
    fn of(line: Line<'_>, reader: &mut csv_core::Reader) -> Result<Self, ReadError> {
        let bytes = line.text.as_bytes();
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'"')
            && !bytes.iter().filter(|byte| **byte == b'"').count().is_multiple_of(2)
        {
            return Err(line.cell(at, &line.text[at..]).unexpected("quotes closed on their line"));
        }
        reader.reset();
        let mut output = vec![0; bytes.len() + 1];
        let (mut read, mut written, mut start) = (0, 0, 0);
        let mut ends = Vec::new();
        loop {
            let (result, taken, made) = reader.read_field(&bytes[read..], &mut output[written..]);
            read += taken;
            written += made;
            match result {
                // All of the line is read: say so, that the last cell ends.
                ReadFieldResult::InputEmpty if read >= bytes.len() => {
                    let (result, _, made) = reader.read_field(&[], &mut output[written..]);
                    written += made;
                    if matches!(result, ReadFieldResult::Field { .. }) {
                        ends.push((start, written));
                    }
                    break;
                }
                ReadFieldResult::InputEmpty => {}
                ReadFieldResult::Field { record_end } => {
                    ends.push((start, written));
                    start = read;
                    if record_end {
                        break;
                    }
                }
                ReadFieldResult::OutputFull | ReadFieldResult::End => break,
            }
            if ends.len() > COLUMNS {
                return Err(line.cell(start, "").too_much("columns", COLUMNS));
            }
        }
        output.truncate(written);
        let text = String::from_utf8(output)
            .map_err(|_| line.cell(0, line.text).unexpected("comma-separated values"))?;
        Ok(Self { text, ends })
    }

    /// Each cell with where it begins in the line.
    fn iter(&self) -> impl Iterator<Item = (usize, &str)> {
        let before = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        before
            .zip(&self.ends)
            .map(|(from, (start, end))| (*start, self.text.get(from..*end).unwrap_or_default()))
    }
}
