//! page
use super::Report;
impl Report { pub(super) fn page(&self) -> String { String::new() } }
