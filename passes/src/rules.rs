//! What the passes that go operator by operator have in common: tables of rules, and reasons why a rule does not apply.
//!
//! Channel provenance, lowering, differentiation and rewriting each have a module for a kind of operator, named alike
//! (`arithmetic`, `activation`, `product`, `norm`, `moves`, `attention`); every one ends in a table of its rules, and
//! sees an operator as a `Scene`. docs/operators.md shows all tables side by side.

/// Why a rule does not apply, in words that go on from the operator's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decline(pub String);

impl<T: Into<String>> From<T> for Decline {
    fn from(why: T) -> Self {
        Self(why.into())
    }
}

/// Operator types, with the rule for all of them.
pub(crate) type Table<R> = &'static [(&'static [&'static str], R)];

/// The rule for an operator type, from several tables.
pub(crate) fn find<R: Copy>(tables: &[Table<R>], op_type: &str) -> Option<R> {
    let rows = tables.iter().flat_map(|table| table.iter());
    rows.filter(|(names, _)| names.contains(&op_type)).map(|(_, rule)| *rule).next()
}

/// The operator types that have a rule, from several tables.
#[cfg(test)]
pub(crate) fn names<R>(tables: &[Table<R>]) -> Vec<&'static str> {
    let rows = tables.iter().flat_map(|table| table.iter());
    rows.flat_map(|(names, _)| names.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::path::Path;

    use crate::calculus::differentiate;
    use crate::discover::provenance;
    use crate::remove::rewrite;
    use crate::simplify::lower;

    /// The passes, in the order of the columns.
    const PASSES: [&str; 4] = ["channels", "taken apart", "gradient", "rewritten"];

    /// Which passes have a rule, by domain and operator.
    fn matrix() -> BTreeMap<(&'static str, &'static str), [bool; 4]> {
        let standard = |names: Vec<&'static str>| names.into_iter().map(|name| (name, true)).collect::<Vec<_>>();
        let tables = [
            standard(provenance::operators()),
            lower::operators(),
            standard(differentiate::operators()),
            rewrite::operators(),
        ];
        let mut matrix: BTreeMap<_, [bool; 4]> = BTreeMap::new();
        for (pass, operators) in tables.iter().enumerate() {
            for &(name, is_standard) in operators {
                let domain = if is_standard { "" } else { "com.microsoft" };
                matrix.entry((domain, name)).or_default()[pass] = true;
            }
        }
        matrix
    }

    /// The page that docs/operators.md is.
    fn page() -> String {
        let mut page = String::from(include_str!("operators_head.md"));
        let _ = writeln!(page, "| operator | {} |", PASSES.join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(PASSES.len()));
        for ((domain, name), passes) in matrix() {
            let label = if domain.is_empty() { name.to_string() } else { format!("{domain} {name}") };
            let cells: Vec<_> = passes.iter().map(|&has| if has { "yes" } else { "" }).collect();
            let _ = writeln!(page, "| {label} | {} |", cells.join(" | "));
        }
        page
    }

    /// To bring the page up to date: `UPDATE_DOCS=1 cargo test -p kprune-passes operators`.
    #[test]
    fn the_page_of_operators_shows_the_tables() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operators.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        match std::fs::read_to_string(&path) {
            Ok(written) => assert_eq!(written, page(), "docs/operators.md is out of date"),
            Err(_) => eprintln!("skipped: the docs are not packaged"),
        }
    }

    #[test]
    fn no_operator_has_two_rules_in_one_pass() {
        for mut names in [provenance::operators(), differentiate::operators()] {
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
