//! Progress on a terminal.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::escape::printable;
use crate::progress::{Progress, say};

/// A bar where standard error is a terminal, lines where it is not.
pub struct Terminal {
    bar: Option<ProgressBar>,
    /// What there is to do, what of it is done, and since when.
    work: Mutex<(usize, usize, Instant)>,
}

impl Terminal {
    /// Starts to show.
    pub fn new() -> Self {
        let work = Mutex::new((0, 0, Instant::now()));
        if !std::io::stderr().is_terminal() {
            return Self { bar: None, work };
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:40!} {wide_bar} {percent:>3} %  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar: Some(bar), work }
    }

    /// How long the rest will take, by what was done so far; nothing where that is over soon.
    fn left(&self) -> Option<String> {
        let (all, done, since) = *self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = all.saturating_sub(done) as f64 / done.max(1) as f64;
        let seconds = since.elapsed().as_secs_f64() * rest;
        (done > 0 && seconds >= SOON).then(|| match seconds < 90.0 {
            true => format!(" (about {seconds:.0} s left)"),
            false => format!(" (about {:.0} min left)", seconds / 60.0),
        })
    }
}

/// A rest of fewer seconds is not spoken of.
const SOON: f64 = 10.0;

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Terminal {
    fn expect(&self, work: usize) {
        // Of work that was not foreseen there is more each time.
        let mut known = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        known.0 = work;
        if known.1 == 0 {
            known.2 = Instant::now();
        }
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
            say(&printable(&format!("{line}{}", self.left().unwrap_or_default())));
        }
    }

    fn advance(&self, work: usize) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).1 += work;
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

/// Says how far the work is to a program: a line of JSON for every step, on standard error.
#[derive(Debug, Default)]
pub struct JsonLines;

impl Progress for JsonLines {
    fn expect(&self, work: usize) {
        say(&json!({"expect": work}).to_string());
    }

    fn stage(&self, what: &str) {
        say(&json!({"stage": what}).to_string());
    }

    fn done(&self, line: &str) {
        say(&json!({"done": line}).to_string());
    }

    fn advance(&self, work: usize) {
        say(&json!({"advance": work}).to_string());
    }
}
