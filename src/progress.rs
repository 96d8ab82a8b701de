//! Progress: a bar on a terminal, plain lines otherwise, or whatever a caller makes of it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::escape::printable;

/// Writes a line to standard error; where nobody can read it, it is lost.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Is told how far the work has come.
pub trait Progress {
    /// There will be so much work in all, in the units of [`Progress::advance`].
    fn expect(&self, _work: usize) {}

    /// This is being done now.
    fn stage(&self, _what: &str) {}

    /// Something is done, with this result.
    fn done(&self, _line: &str) {}

    /// So much work is done; a unit is one batch through one sublayer.
    fn advance(&self, _work: usize) {}
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}

/// A bar where standard error is a terminal, lines where it is not.
pub struct Terminal {
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// Starts to show.
    pub fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:40!} {wide_bar} {percent:>3} %  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar: Some(bar) }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Terminal {
    fn expect(&self, work: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(work as u64);
        }
    }

    fn stage(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(printable(what).into_owned());
        }
    }

    fn done(&self, line: &str) {
        if self.bar.is_none() {
            say(&printable(line));
        }
    }

    fn advance(&self, work: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(work as u64);
        }
    }
}

impl Drop for Terminal {
    /// Takes the bar away, whatever happened.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
