//! Patterns: where zeros may be.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Where zeros may be in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere.
    #[default]
    Unstructured,
    /// So many of as many weights as follow each other along the axis that products are summed up along, and no more:
    /// 2:4 has two that are not zero of each four.
    Groups {
        /// Weights of a group that stay.
        stay: usize,
        /// Weights of a group.
        of: usize,
    },
}

/// Groups are no longer.
const LONGEST: usize = 64;

impl Pattern {
    /// The largest share of zeros.
    pub fn most(self) -> f64 {
        match self {
            Self::Unstructured => 1.0,
            Self::Groups { stay, of } => (of - stay) as f64 / of as f64,
        }
    }

    /// How many of `inputs` weights can be zero.
    pub fn most_of(self, inputs: usize) -> usize {
        match self {
            Self::Unstructured => inputs,
            Self::Groups { stay, of } => (inputs / of) * (of - stay) + (inputs % of).saturating_sub(stay),
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unstructured" {
            return Ok(Self::Unstructured);
        }
        let wrong = || format!("{text:?} is no pattern: unstructured, or N:M, as 2:4 and 4:8, for N of M that stay");
        let (stay, of) = text.split_once(':').ok_or_else(wrong)?;
        let [stay, of] = [stay, of].map(|number| number.parse::<usize>().map_err(|_| wrong()));
        match (stay?, of?) {
            (stay, of) if 0 < stay && stay < of && of <= LONGEST => Ok(Self::Groups { stay, of }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstructured => write!(f, "unstructured"),
            Self::Groups { stay, of } => write!(f, "{stay}:{of}"),
        }
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_they_are_written_and_nonsense_is_refused() {
        for text in ["unstructured", "2:4", "4:8", "1:4"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for text in ["", "4", "0:4", "4:4", "5:4", "2:4:8", "-1:4", "1:65", "2:x"] {
            assert!(text.parse::<Pattern>().unwrap_err().contains("is no pattern"), "{text}");
        }
    }

    #[test]
    fn a_group_that_is_cut_short_keeps_as_many_as_a_whole_one() {
        let pattern: Pattern = "2:4".parse().unwrap();
        assert_eq!([8, 9, 10, 11].map(|inputs| pattern.most_of(inputs)), [4, 4, 4, 5]);
        assert_eq!(pattern.most(), 0.5);
    }
}
