//! How far the work has come: whatever a caller makes of it.

use std::io::Write;

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
