//! What options may say.

use std::path::PathBuf;

use kprune_passes::calculus::objective::OutputKind;
use kprune_passes::discover::Scope;

use crate::options::{Distil, MOST, SPARSEST, Stage};

pub(super) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

/// As many threads as anybody has a use for.
const MOST_THREADS: usize = 1024;

pub(super) fn threads(text: &str) -> Result<usize, String> {
    let fits = |n: &usize| (1..=MOST_THREADS).contains(n);
    text.parse().ok().filter(fits).ok_or_else(|| format!("expected a whole number from 1 to {MOST_THREADS}"))
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| fits(x)).ok_or_else(|| format!("expected {expected}"))
}

pub(super) fn compression(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=MOST).contains(&x), "a number from 0 to 0.95")
}

pub(super) fn sparsity(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=SPARSEST).contains(&x), "a number from 0 to 0.9")
}

pub(super) fn weight(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x >= 0.0, "a number, 0 or above")
}

pub(super) fn above_zero(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x > 0.0, "a number above 0")
}

pub(super) fn distil(text: &str) -> Result<Distil, String> {
    Ok(match text {
        "off" => Distil::Off,
        "on" => Distil::On,
        "auto" => Distil::Auto,
        _ => Distil::Equivalents(number(text, |x| x.is_finite() && x > 0.0, "off, on, auto or a number above 0")?),
    })
}

pub(super) fn above_one(text: &str) -> Result<f64, String> {
    number(text, |x| x.is_finite() && x > 1.0, "a number above 1")
}

pub(super) fn scope(text: &str) -> Result<Scope, String> {
    match text {
        "transformer" => Ok(Scope::Transformer),
        "all" => Ok(Scope::All),
        _ => Err("expected transformer or all".into()),
    }
}

pub(super) fn dump(text: &str) -> Result<(Stage, PathBuf), String> {
    let (stage, path) = text.split_once('=').ok_or("expected STAGE=FILE")?;
    let stage = match stage {
        "read" => Stage::Read,
        "single" => Stage::Single,
        "lowered" => Stage::Lowered,
        "columns" => Stage::Columns,
        "equations" => Stage::Equations,
        "masked" => Stage::Masked,
        _ => return Err("the stages are read, single, lowered, columns, equations and masked".into()),
    };
    Ok((stage, path.into()))
}

pub(super) fn report(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_known = text == "-" || path.extension().is_some_and(|e| e == "html" || e == "json");
    if is_known { Ok(path) } else { Err("a report is a page (.html), JSON (.json) or - for standard output".into()) }
}

pub(super) fn output(text: &str) -> Result<(String, OutputKind), String> {
    let (name, kind) = text.rsplit_once(':').ok_or("expected NAME:KIND")?;
    Ok((name.to_string(), kind.parse()?))
}
