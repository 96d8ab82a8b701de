//! What is known to be right about samples.

use kprune_passes::ir::{ElementType, Tensor};
use ndarray::{Array2, Ix2};

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

    /// Labels from words: whole numbers are classes, other numbers are numbers, and anything else is the name of
    /// a class. `id` gives the class that a model calls so; without it, names are counted in alphabetic order.
    #[cfg(any(feature = "text", feature = "images"))]
    pub(super) fn from_words(words: &[String], id: impl Fn(&str) -> Option<i64>) -> Self {
        let all = |parsed: Vec<Option<i64>>| parsed.into_iter().collect::<Option<Vec<i64>>>();
        if let Some(classes) = all(words.iter().map(|w| w.parse().ok()).collect()) {
            return Self::Classes(classes);
        }
        let numbers: Option<Vec<f64>> = words.iter().map(|w| w.parse().ok()).collect();
        if let Some(numbers) = numbers {
            return Self::Numbers(numbers);
        }
        if let Some(classes) = all(words.iter().map(|w| id(w)).collect()) {
            return Self::Classes(classes);
        }
        let mut names: Vec<&String> = words.iter().collect();
        names.sort();
        names.dedup();
        let place = |w: &String| names.binary_search(&w).unwrap_or_default() as i64;
        Self::Classes(words.iter().map(place).collect())
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

/// The class that the `config.json` beside a model calls by a name.
#[cfg(any(feature = "text", feature = "images"))]
pub(super) fn class_of(model: &std::path::Path) -> impl Fn(&str) -> Option<i64> {
    let config = crate::store::read(&model.with_file_name("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    move |name| config.get("label2id")?.get(name)?.as_i64()
}

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
        let nobody = |_: &str| None;
        assert_eq!(Labels::from_words(&words(&["1", "0"]), nobody), Labels::Classes(vec![1, 0]));
        assert_eq!(Labels::from_words(&words(&["1", "0.5"]), nobody), Labels::Numbers(vec![1.0, 0.5]));
        assert_eq!(Labels::from_words(&words(&["no", "yes", "no"]), nobody), Labels::Classes(vec![0, 1, 0]));
        let named = |w: &str| Some(if w == "no" { 7 } else { 3 });
        assert_eq!(Labels::from_words(&words(&["no", "yes"]), named), Labels::Classes(vec![7, 3]));
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
