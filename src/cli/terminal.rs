//! Progress on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::escape::printable;
use crate::progress::{Progress, say};

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
