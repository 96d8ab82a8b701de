//! What is known to be right about samples.

use kprune_passes::ir::{ElementType, Tensor};
use ndarray::{Array2, Ix2};

#[cfg(any(feature = "text", feature = "images"))]
use super::config::Config;

/// What is right for every sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// The class of each.
    Classes(Vec<i64>),
    /// A number for each.
    Numbers(Vec<f64>),
    /// The class of every token of each: [samples, tokens]; negative where it does not count.
    Tokens(Array2<i64>),
    /// The first and the last token of each one's answer.
    Spans(Vec<[i64; 2]>),
}

/// The names under which files of arrays hold labels.
pub(super) const NAMES: [&str; 4] = ["labels", "label", "start_positions", "end_positions"];

impl Labels {
    /// Labels from the arrays of a file that bear their names; the reason where they make no sense.
    pub(super) fn from_arrays(mut find: impl FnMut(&str) -> Option<Tensor>) -> Result<Option<Self>, String> {
        if let (Some(start), Some(end)) = (find("start_positions"), find("end_positions")) {
            let flat =
                |t: &Tensor| t.to_i64().map(|a| a.iter().copied().collect::<Vec<_>>()).map_err(|e| e.to_string());
            let (start, end) = (flat(&start)?, flat(&end)?);
            if start.len() != end.len() {
                return Err(format!("there are {} start positions and {} end positions", start.len(), end.len()));
            }
            return Ok(Some(Self::Spans(start.into_iter().zip(end).map(|(s, e)| [s, e]).collect())));
        }
        let Some(labels) = find("labels").or_else(|| find("label")) else { return Ok(None) };
        let unusable = |e: kprune_passes::ir::TensorError| format!("the labels {e}");
        if labels.dims().is_empty() {
            return Err("the labels are a single number".into());
        }
        let column = labels.dims().iter().skip(1).product::<usize>() == 1;
        if labels.element().is_float() {
            let numbers = labels.to_f64().map_err(unusable)?;
            return match column {
                true => Ok(Some(Self::Numbers(numbers.iter().copied().collect()))),
                false => Err(format!("the labels have the shape {:?}, and not one number a sample", labels.dims())),
            };
        }
        let classes = labels.to_i64().map_err(unusable)?;
        if column {
            return Ok(Some(Self::Classes(classes.iter().copied().collect())));
        }
        let shape = format!("the labels have the shape {:?}, and not [samples] or [samples, tokens]", labels.dims());
        Ok(Some(Self::Tokens(classes.into_dimensionality::<Ix2>().map_err(|_| shape)?)))
    }

    /// Labels from words: whole numbers are classes, other numbers are numbers, and anything else is the name of a class,
    /// as the model's `config` has it; where it has none, names are counted in alphabetic order, and that is noted. Names
    /// that the model does not know are no labels, and a note says so.
    #[cfg(any(feature = "text", feature = "images"))]
    pub(super) fn from_words(words: &[String], config: &Config, notes: &mut Vec<String>) -> Option<Self> {
        let classes: Option<Vec<i64>> = words.iter().map(|w| w.trim().parse().ok()).collect();
        let numbers = || words.iter().map(|w| w.trim().parse().ok()).collect::<Option<Vec<f64>>>();
        if let Some(labels) = classes.map(Self::Classes).or_else(|| numbers().map(Self::Numbers)) {
            return Some(labels);
        }
        if config.names().next().is_some() {
            let classes: Result<Vec<i64>, &String> = words.iter().map(|w| config.class(w).ok_or(w)).collect();
            let noted = |word: &String| {
                let known: Vec<_> = config.names().take(MOST_NAMED).collect();
                let known = known.join(", ");
                notes.push(format!("the labels are not used: {word:?} is none of the classes of config.json, {known}"));
            };
            return classes.map_err(noted).ok().map(Self::Classes);
        }
        let mut names: Vec<&String> = words.iter().collect();
        names.sort();
        names.dedup();
        let numbered: Vec<_> =
            names.iter().take(MOST_NAMED).enumerate().map(|(i, n)| format!("{n:?} is {i}")).collect();
        let numbered = numbered.join(", ");
        notes.push(format!("no config.json names the classes, so labels count in alphabetic order: {numbered}"));
        let place = |w: &String| names.binary_search(&w).unwrap_or_default() as i64;
        Some(Self::Classes(words.iter().map(place).collect()))
    }

    /// The class of every sample: also where classes are written as numbers, as 2.0.
    pub fn classes(&self) -> Option<Vec<i64>> {
        match self {
            Self::Classes(classes) => Some(classes.clone()),
            Self::Numbers(numbers) => numbers.iter().map(|&x| (x.fract() == 0.0).then_some(x as i64)).collect(),
            _ => None,
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(c) => c.len(),
            Self::Numbers(n) => n.len(),
            Self::Tokens(t) => t.nrows(),
            Self::Spans(s) => s.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of the given samples, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        match self {
            Self::Classes(c) => Self::Classes(rows.iter().filter_map(|&r| c.get(r).copied()).collect()),
            Self::Numbers(n) => Self::Numbers(rows.iter().filter_map(|&r| n.get(r).copied()).collect()),
            Self::Tokens(t) => Self::Tokens(t.select(ndarray::Axis(0), rows)),
            Self::Spans(s) => Self::Spans(rows.iter().filter_map(|&r| s.get(r).copied()).collect()),
        }
    }

    /// Those of several files, one after the other; `None` where they are of different kinds.
    pub(super) fn joined(parts: Vec<Option<Self>>) -> Option<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next()??;
        for part in parts {
            match (&mut all, part?) {
                (Self::Classes(a), Self::Classes(b)) => a.extend(b),
                (Self::Numbers(a), Self::Numbers(b)) => a.extend(b),
                (Self::Spans(a), Self::Spans(b)) => a.extend(b),
                (Self::Tokens(a), Self::Tokens(b)) => {
                    let width = a.ncols().max(b.ncols());
                    let mut wide = Array2::from_elem((a.nrows() + b.nrows(), width), -100);
                    wide.slice_mut(ndarray::s![..a.nrows(), ..a.ncols()]).assign(a);
                    wide.slice_mut(ndarray::s![a.nrows().., ..b.ncols()]).assign(&b);
                    *a = wide;
                }
                _ => return None,
            }
        }
        Some(all)
    }
}

/// So many classes are named in messages.
#[cfg(any(feature = "text", feature = "images"))]
const MOST_NAMED: usize = 8;

/// A tensor with the same numbers in another element type; `None` where that is not possible without a loss that
/// nobody would expect.
pub(super) fn converted(tensor: &Tensor, to: ElementType) -> Option<Tensor> {
    use ElementType as E;
    if tensor.element() == to {
        return Some(tensor.clone());
    }
    if to.is_float() {
        let floats = match tensor.element().is_float() {
            true => tensor.to_f64().ok()?,
            false => tensor.to_i64().ok()?.mapv(|x| x as f64),
        };
        return Tensor::from_floats(to, &floats).ok();
    }
    let integers = tensor.to_i64().ok()?;
    let bytes: Option<Vec<u8>> = match to {
        E::I64 => Some(integers.iter().flat_map(|i| i.to_le_bytes()).collect()),
        E::I32 => {
            let narrow: Option<Vec<i32>> = integers.iter().map(|&i| i.try_into().ok()).collect();
            narrow.map(|n| n.iter().flat_map(|i| i.to_le_bytes()).collect())
        }
        E::U8 => integers.iter().map(|&i| i.try_into().ok()).collect(),
        E::Bool => Some(integers.iter().map(|&i| (i != 0) as u8).collect()),
        _ => None,
    };
    Tensor::from_raw("", to, tensor.dims(), bytes?.into()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn words_are_numbers_or_names_of_classes() {
        let of = |labels: &[&str], config: serde_json::Value| {
            let mut notes = Vec::new();
            (Labels::from_words(&words(labels), &Config::of(&config), &mut notes), notes.join("; "))
        };
        let none = serde_json::Value::Null;
        assert_eq!(of(&["1", "0"], none.clone()).0, Some(Labels::Classes(vec![1, 0])));
        assert_eq!(of(&["1", "0.5"], none.clone()).0, Some(Labels::Numbers(vec![1.0, 0.5])));
        let (labels, notes) = of(&["no", "yes", "no"], none);
        assert_eq!(labels, Some(Labels::Classes(vec![0, 1, 0])));
        assert!(notes.contains("alphabetic order: \"no\" is 0, \"yes\" is 1"), "{notes}");
        let config = serde_json::json!({"label2id": {"no": 7, "yes": 3}});
        assert_eq!(of(&["no", "Yes"], config.clone()), (Some(Labels::Classes(vec![7, 3])), String::new()));
        let (labels, notes) = of(&["no", "maybe"], config);
        assert_eq!(labels, None);
        assert!(notes.contains("\"maybe\" is none of the classes of config.json, yes, no"), "{notes}");
    }

    #[test]
    fn token_labels_of_several_files_are_filled_up_with_what_does_not_count() {
        let short = Labels::Tokens(ndarray::array![[1, 2]]);
        let long = Labels::Tokens(ndarray::array![[3, 4, 5]]);
        let joined = Labels::joined(vec![Some(short), Some(long)]);
        assert_eq!(joined, Some(Labels::Tokens(ndarray::array![[1, 2, -100], [3, 4, 5]])));
        assert_eq!(Labels::joined(vec![Some(Labels::Classes(vec![1])), None]), None);
    }

    #[test]
    fn numbers_are_converted_only_without_surprises() {
        let wide = Tensor::from_i64s(&[2], &[1, 1 << 40]);
        assert!(converted(&wide, ElementType::I32).is_none());
        let small = converted(&Tensor::from_i64s(&[2], &[1, 7]), ElementType::I32).unwrap();
        assert_eq!((small.element(), small.to_i64().unwrap()[1]), (ElementType::I32, 7));
        let floats = Tensor::from_floats(ElementType::F32, &ndarray::arr1(&[0.5]).into_dyn()).unwrap();
        assert!(converted(&floats, ElementType::I64).is_none());
    }
}
