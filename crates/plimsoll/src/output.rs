//! What people and programs read: the only place that writes to standard output and error.
//!
//! Data goes to standard output, as tables or (with `--json`) as JSON; talk goes to standard error.
//! Tables can be read without colour, and have none unless standard output is a terminal that wants
//! it. A reader that has gone is not a failure.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

pub(crate) mod balance;
pub(crate) mod cluster;
pub(crate) mod explain;
pub(crate) mod migration;
pub(crate) mod progress;
mod rates;
pub(crate) mod vm;

/// How output is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    color: bool,
    terminal: bool,
}

/// What a colour is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Attention,
    Bad,
    Faint,
}

impl Output {
    /// Output as the command line and the environment want it.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { json, color: terminal && wanted, terminal }
    }

    /// Output for tests: no terminal, no colour.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { json: false, color: false, terminal: false }
    }

    /// Whether standard output is a terminal.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether programs read it.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Writes data.
    pub(crate) fn data(&self, text: &str) -> Outcome {
        self.bytes(text.as_bytes())
    }

    /// Writes data as it is.
    #[expect(clippy::unused_self, reason = "whoever writes data has an Output")]
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Outcome {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes a value as JSON, on lines of its own.
    pub(crate) fn json<T: Serialize + ?Sized>(&self, value: &T) -> Outcome {
        let text = serde_json::to_string_pretty(value)?;
        self.data(&format!("{text}\n"))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> Outcome {
        let text = serde_json::to_string(value)?;
        self.data(&format!("{text}\n"))
    }

    /// Writes a value: as JSON, or as people read it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &self,
        value: &T,
        people: impl FnOnce(&Self, &T) -> String,
    ) -> Outcome {
        if self.json { self.json(value) } else { self.data(&people(self, value)) }
    }

    /// An empty table with these column titles.
    pub(crate) fn table(&self, titles: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        // Only a terminal has a width; a file or pipe gets whole lines.
        table.set_content_arrangement(if self.terminal {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        if self.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !titles.is_empty() {
            table.set_header(titles.iter().map(|title| self.cell(*title, Tone::Faint)));
        }
        table
    }

    /// A table as text, without what a table leaves at the ends of lines.
    pub(crate) fn finish(&self, mut table: Table) -> String {
        let columns = table.column_count();
        for index in 0..columns {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
            }
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// A table of names and values, one a line.
    pub(crate) fn facts(&self, facts: &[(&str, String)]) -> String {
        let mut table = self.table(&[]);
        for (name, value) in facts {
            table.add_row([self.cell(*name, Tone::Faint), Cell::new(value)]);
        }
        self.finish(table)
    }

    /// A cell of a table.
    pub(crate) fn cell(&self, text: impl ToString, tone: Tone) -> Cell {
        let cell = Cell::new(text);
        if !self.color {
            return cell;
        }
        match tone {
            Tone::Plain => cell,
            Tone::Good => cell.fg(Color::Green),
            Tone::Attention => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red),
            Tone::Faint => cell.fg(Color::DarkGrey),
        }
    }

    /// Text in a tone.
    pub(crate) fn paint(&self, text: &str, tone: Tone) -> String {
        let code = match tone {
            _ if !self.color => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => 32,
            Tone::Attention => 33,
            Tone::Bad => 31,
            Tone::Faint => 90,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Asks before something that cannot be undone: on a terminal, unless `yes`.
    pub(crate) fn confirm(&self, question: &str, yes: bool) -> Outcome {
        if yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(());
        }
        talk_inline(&format!("{question} [y/N] "));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(Failure::new("nothing was done").hint("answer `y`, or give --yes"))
        }
    }
}

/// Says something to people. If nobody listens, so be it.
pub(crate) fn talk(text: &str) {
    talk_inline(&format!("{text}\n"));
}

fn talk_inline(text: &str) {
    talk_bytes(text.as_bytes());
}

/// Says what somebody else wrote, as it is.
pub(crate) fn talk_bytes(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(bytes).and_then(|()| stderr.flush());
}

/// A value, or a dash where there is none.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// An instant to the second.
pub(crate) fn instant(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Text of a guest or another stranger, without what could take a terminal over.
pub(crate) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// How long ago, in the two largest units, such as `3h 5m`.
pub(crate) fn age(since: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        let ago =
            |seconds: i64| age(jiff::Timestamp::from_second(1_000_000 - seconds).unwrap(), now);
        assert_eq!(ago(5), "5s");
        assert_eq!(ago(65), "1m 5s");
        assert_eq!(ago(3 * 3600 + 60), "3h 1m");
        assert_eq!(ago(49 * 3600), "2d 1h");
        assert_eq!(ago(-5), "0s");
    }

    #[test]
    fn tables_have_no_trailing_blanks_and_no_colour_by_default() {
        let output = Output::plain();
        let mut table = output.table(&["NAME", "STATE"]);
        table.add_row([output.cell("web-1", Tone::Plain), output.cell("up", Tone::Good)]);
        assert_eq!(output.finish(table), "NAME   STATE\nweb-1  up\n");
    }
}
