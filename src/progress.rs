//! Progress: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how far the work has come.
pub struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
}

impl Progress {
    /// Shows nothing.
    pub fn silent() -> Self {
        Self { bar: None, lines: false }
    }

    /// A bar where standard error is a terminal, lines where it is not.
    pub fn visible() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: None, lines: true };
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:40!} {wide_bar} {percent:>3} %  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar: Some(bar), lines: false }
    }

    /// Says how much work there will be in all, in the units of [`Progress::advance`].
    pub fn expect(&self, work: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(work as u64);
        }
    }

    /// Says what is being done now.
    pub fn stage(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_string());
        }
    }

    /// Says that something is done, with its result.
    pub fn done(&self, line: &str) {
        if self.lines {
            eprintln!("{line}");
        }
    }

    /// Goes on by some work; a unit is one batch through one sublayer.
    pub fn advance(&self, work: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(work as u64);
        }
    }
}

impl Drop for Progress {
    /// Takes the bar away, whatever happened.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
