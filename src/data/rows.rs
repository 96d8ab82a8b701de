//! Rows of texts and labels: `.jsonl`, `.csv`, `.tsv` and `.txt` files.

use std::collections::HashMap;
use std::path::Path;

use super::Columns;
use crate::error::Error;
use crate::store;

/// Texts, with a second one where the task takes pairs, and their labels as they are written.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) texts: Vec<(String, Option<String>)>,
    pub(super) labels: Option<Vec<String>>,
}

/// Names of text columns that data sets use, pairs first.
const TEXTS: &[&[&str]] = &[
    &["sentence1", "sentence2"],
    &["premise", "hypothesis"],
    &["question1", "question2"],
    &["question", "context"],
    &["question", "sentence"],
    &["text_a", "text_b"],
    &["text"],
    &["sentence"],
];

/// Names of label columns that data sets use.
const LABELS: &[&str] = &["label", "labels"];

/// A table: the names of its columns, and its rows.
struct Table {
    names: Vec<String>,
    rows: Vec<Row>,
}

/// A row: the number of its line, and its cells with the numbers of their columns. Objects in JSON may each have
/// keys of their own, so that what is not there takes no room.
struct Row {
    line: usize,
    cells: Vec<(usize, String)>,
}

impl Row {
    fn new(line: usize, cells: impl IntoIterator<Item = String>) -> Self {
        Self { line, cells: cells.into_iter().enumerate().collect() }
    }

    fn cell(&self, column: usize) -> Option<&String> {
        self.cells.iter().find(|(c, _)| *c == column).map(|(_, text)| text)
    }
}

/// Reads the rows of a file.
pub(super) fn read(path: &Path, columns: &Columns) -> Result<Rows, Error> {
    let table = match path.extension().and_then(|e| e.to_str()).unwrap_or("") {
        "jsonl" => json_lines(path)?,
        "csv" => separated(path, b',')?,
        "tsv" => separated(path, b'\t')?,
        _ => lines(path, columns)?,
    };
    table.pick(path, columns)
}

impl Table {
    /// The columns that were named, or that have the usual names.
    fn pick(self, path: &Path, columns: &Columns) -> Result<Rows, Error> {
        let places: HashMap<&str, usize> = self.names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        let place = |name: &str| places.get(name).copied();
        let named = |option: &str, name: &String| {
            let help = format!("name a column with {option}; there are: {}", some(&self.names));
            place(name).ok_or_else(|| Error::data(path, format!("has no column {name:?}"), help))
        };
        let texts: Vec<usize> = match columns.texts.as_slice() {
            [] => {
                let usual = TEXTS.iter().find_map(|names| names.iter().map(|n| place(n)).collect::<Option<Vec<_>>>());
                let help = format!("name them with --text-columns; there are: {}", some(&self.names));
                usual.ok_or_else(|| Error::data(path, "has no columns that look like text", help))?
            }
            names => names.iter().map(|n| named("--text-columns", n)).collect::<Result<_, _>>()?,
        };
        let label = match &columns.label {
            Some(name) => Some(named("--label-column", name)?),
            None => LABELS.iter().find_map(|n| place(n)),
        };
        let mut rows = Rows { texts: Vec::new(), labels: label.map(|_| Vec::new()) };
        for row in &self.rows {
            let cell = |place: usize| {
                let help = "every row needs a value in each of its columns";
                let name = self.names.get(place).map_or("", String::as_str);
                let missing = || Error::data(path, format!("line {} has no {name:?}", row.line), help);
                row.cell(place).cloned().ok_or_else(missing)
            };
            let first = texts.first().map_or_else(|| Ok(String::new()), |&first| cell(first))?;
            rows.texts.push((first, texts.get(1).map(|&second| cell(second)).transpose()?));
            if let (Some(labels), Some(place)) = (&mut rows.labels, label) {
                labels.push(cell(place)?);
            }
        }
        Ok(rows)
    }
}

/// The first of many names.
fn some(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
    let rest = if names.len() > first.len() { ", ..." } else { "" };
    format!("{}{rest}", first.join(", "))
}

/// One JSON object a line.
fn json_lines(path: &Path) -> Result<Table, Error> {
    let content = store::read_text(path).map_err(Error::io("read", path))?;
    let mut table = Table { names: Vec::new(), rows: Vec::new() };
    let mut places: HashMap<String, usize> = HashMap::new();
    for (i, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let help = "every line is an object such as {\"text\": \"...\"}";
        let wrong = |reason: String| Error::data(path, format!("line {} {reason}", i + 1), help);
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).map_err(|e| wrong(format!("is no JSON object: {e}")))?;
        let mut cells = Vec::new();
        for (name, value) in object {
            let next = places.len();
            let place = *places.entry(name.clone()).or_insert(next);
            if place == next {
                table.names.push(name);
            }
            let text = match value {
                serde_json::Value::Null => continue,
                serde_json::Value::String(text) => text,
                serde_json::Value::Bool(b) => (b as u8).to_string(),
                other => other.to_string(),
            };
            cells.push((place, text));
        }
        table.rows.push(Row { line: i + 1, cells });
    }
    Ok(table)
}

/// Values with separators between them, names in the first line.
fn separated(path: &Path, separator: u8) -> Result<Table, Error> {
    let help = "the first line names the columns, and every other line has as many";
    let wrong = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(source) => Error::io("read", path)(source),
        kind => Error::data(path, format!("is no readable table: {:?}", kind), help),
    };
    // Tab-separated data sets do not quote.
    let file = store::open(path).map_err(Error::io("read", path))?;
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).quoting(separator == b',').from_reader(file);
    let names = reader.headers().map_err(wrong)?.iter().map(str::to_string).collect();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let number = record.position().map_or(0, |p| p.line() as usize);
        rows.push(Row::new(number, record.iter().map(str::to_string)));
    }
    Ok(Table { names, rows })
}

/// One text a line; columns with tabs between them where columns are asked for by number.
fn lines(path: &Path, columns: &Columns) -> Result<Table, Error> {
    let content = store::read_text(path).map_err(Error::io("read", path))?;
    let full = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if columns.texts.is_empty() && columns.label.is_none() {
        let rows = full.map(|(i, line)| Row::new(i + 1, [line.to_string()])).collect();
        return Ok(Table { names: vec!["text".into()], rows });
    }
    let rows: Vec<Row> = full.map(|(i, line)| Row::new(i + 1, line.split('\t').map(str::to_string))).collect();
    let width = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    Ok(Table { names: (1..=width).map(|n| n.to_string()).collect(), rows })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn rows(name: &str, content: &str, texts: &[&str], label: Option<&str>) -> Result<Rows, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let columns =
            Columns { texts: texts.iter().map(|t| t.to_string()).collect(), label: label.map(str::to_string) };
        read(&path, &columns)
    }

    fn pair(a: &str, b: &str) -> (String, Option<String>) {
        (a.into(), Some(b.into()))
    }

    #[test]
    fn columns_are_found_by_their_usual_names() {
        let json = "{\"premise\": \"a\", \"hypothesis\": \"b\", \"label\": 2}\n\n{\"label\": 0, \"premise\": \"c\", \
                    \"hypothesis\": \"d\"}\n";
        let found = rows("x.jsonl", json, &[], None).unwrap();
        assert_eq!(found.texts, [pair("a", "b"), pair("c", "d")]);
        assert_eq!(found.labels.unwrap(), ["2", "0"]);
        let found = rows("x.csv", "idx,sentence,label\n0,\"hello, you\",yes\n", &[], None).unwrap();
        assert_eq!(found.texts, [("hello, you".to_string(), None)]);
        assert_eq!(found.labels.unwrap(), ["yes"]);
    }

    #[test]
    fn columns_are_named_where_they_are_called_otherwise() {
        let found = rows("x.tsv", "left\tright\tscore\na \"b\tc\t0.5\n", &["left", "right"], Some("score")).unwrap();
        assert_eq!(found.texts, [pair("a \"b", "c")]);
        let found = rows("x.txt", "1\thello\n0\tyou\n", &["2"], Some("1")).unwrap();
        assert_eq!(found.texts[1], ("you".to_string(), None));
        assert_eq!(found.labels.unwrap(), ["1", "0"]);
        assert_eq!(rows("x.txt", "1\thello\n", &[], None).unwrap().texts[0].0, "1\thello");
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_there() {
        let message = |r: Result<Rows, Error>| r.unwrap_err().to_string();
        assert!(message(rows("x.csv", "a,b\n1,2\n", &["text"], None)).contains("no column \"text\""));
        assert!(message(rows("x.csv", "a,b\n1,2\n", &[], None)).contains("no columns that look like text"));
        assert!(
            message(rows("x.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n", &[], None)).contains("line 2 has no")
        );
        assert!(message(rows("x.jsonl", "[1]\n", &[], None)).contains("line 1 is no JSON object"));
        assert!(message(rows("x.csv", "a,b\n1\n", &["a"], None)).contains("no readable table"));
    }
}
