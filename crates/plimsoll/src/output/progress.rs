//! Progress of what takes long: a line that changes on a terminal, a line for each step elsewhere.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::talk;

/// Work whose amount is known: how much of it is done and how long the rest will take. Only a
/// terminal sees it.
#[derive(Debug)]
pub(crate) struct Work {
    bar: Option<ProgressBar>,
}

impl Work {
    /// Begins to show work.
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let template = "{bar:24} {percent:>3} %, {eta} left, {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar }
    }

    /// So much of so much is done.
    pub(crate) fn set(&self, done: u64, of: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            // Another piece of work begins: what the last one took says nothing about it.
            if done < bar.position() {
                bar.reset();
            }
            bar.set_length(of);
            bar.set_message(message());
            bar.set_position(done);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// What is being waited for.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins to show something.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.set_message(message);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar }
    }

    /// Shows something else. Only a terminal sees it.
    pub(crate) fn set(&self, message: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.into());
        }
    }

    /// Says something that stays.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| talk(text)),
            None => talk(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
