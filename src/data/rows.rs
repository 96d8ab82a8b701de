//! Rows of texts and labels: `.jsonl`, `.json`, `.csv`, `.tsv` and `.txt` files.

use std::collections::HashMap;
use std::path::Path;

use super::Columns;
use super::decoding::text_of;
use super::samples::FEW;
use crate::error::Error;

/// Texts, with a second one where the task takes pairs, and their labels as they are written.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) texts: Vec<(String, Option<String>)>,
    pub(super) labels: Option<Vec<String>>,
    /// What a user should know about how they were read.
    pub(super) notes: Vec<String>,
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
#[derive(Default)]
struct Table {
    names: Vec<String>,
    rows: Vec<Row>,
    notes: Vec<String>,
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
    let content = text_of(path)?;
    if content.trim().is_empty() {
        return Err(Error::data(path, "holds no samples", FEW));
    }
    let table = match super::opener::kind(path).as_str() {
        "jsonl" | "json" if content.trim_start().starts_with('[') => json_list(path, &content)?,
        "jsonl" | "json" => json_lines(path, &content)?,
        "csv" => separated(path, &content, separator(&content))?,
        "tsv" => separated(path, &content, b'\t')?,
        _ => lines(&content, columns),
    };
    table.pick(path, columns)
}

/// Reads every text of a file for itself: of a `.txt` file what stands between empty lines, of tables the columns of text.
pub(super) fn texts(path: &Path, columns: &Columns) -> Result<Vec<String>, Error> {
    if super::opener::kind(path) == "txt" && columns.texts.is_empty() {
        return documents(path, columns);
    }
    let rows = read(path, columns)?.texts.into_iter();
    Ok(rows.flat_map(|(first, second)| [Some(first), second]).flatten().collect())
}

/// Reads texts as running text, each a document: of a `.txt` file what stands between empty lines, or every line where
/// there are none; of tables the columns of text.
pub(super) fn documents(path: &Path, columns: &Columns) -> Result<Vec<String>, Error> {
    if super::opener::kind(path) == "txt" && columns.texts.is_empty() {
        let content = text_of(path)?;
        let blocks: Vec<String> = blocks(&content);
        return match blocks.is_empty() {
            true => Err(Error::data(path, "holds no samples", FEW)),
            false => Ok(blocks),
        };
    }
    let joined = |(first, second): (String, Option<String>)| [Some(first), second].into_iter().flatten();
    Ok(read(path, columns)?.texts.into_iter().map(|row| joined(row).collect::<Vec<_>>().join("\n")).collect())
}

/// What stands between empty lines; every line, where there is none between two others.
fn blocks(content: &str) -> Vec<String> {
    let lines = content.trim().lines();
    if lines.clone().all(|line| !line.trim().is_empty()) {
        return lines.map(str::to_string).filter(|line| !line.is_empty()).collect();
    }
    let mut blocks: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in lines {
        let is_empty = line.trim().is_empty();
        match blocks.last_mut().filter(|_| is_open && !is_empty) {
            Some(block) => {
                block.push('\n');
                block.push_str(line);
            }
            None if !is_empty => blocks.push(line.to_string()),
            None => {}
        }
        is_open = !is_empty;
    }
    blocks
}

impl Table {
    /// The columns that were named, or that have the usual names.
    fn pick(self, path: &Path, columns: &Columns) -> Result<Rows, Error> {
        let places: HashMap<&str, usize> = self.names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        // As it is written; or else the only one that differs in capitals alone.
        let place = |name: &str| {
            let mut alike = self.names.iter().enumerate().filter(|(_, n)| n.trim().eq_ignore_ascii_case(name.trim()));
            let alike = alike.next().filter(|_| alike.next().is_none());
            places.get(name).copied().or(alike.map(|(i, _)| i))
        };
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
        let mut rows = Rows { texts: Vec::new(), labels: label.map(|_| Vec::new()), notes: self.notes };
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

type Object = serde_json::Map<String, serde_json::Value>;

/// One JSON object a line.
fn json_lines(path: &Path, content: &str) -> Result<Table, Error> {
    let help = "every line is an object such as {\"text\": \"...\"}, or the file is one list of such objects";
    let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let objects = lines.map(|(i, line)| {
        let wrong = |e| Error::data(path, format!("line {} is no JSON object: {e}", i + 1), help);
        Ok((i + 1, serde_json::from_str::<Object>(line).map_err(wrong)?))
    });
    Ok(table_of(objects.collect::<Result<_, Error>>()?))
}

/// One list of JSON objects.
fn json_list(path: &Path, content: &str) -> Result<Table, Error> {
    let wrong =
        |e| Error::data(path, format!("is no list of JSON objects: {e}"), "its entries are as {\"text\": \"...\"}");
    let objects: Vec<Object> = serde_json::from_str(content).map_err(wrong)?;
    Ok(table_of(objects.into_iter().enumerate().map(|(i, object)| (i + 1, object)).collect()))
}

fn table_of(objects: Vec<(usize, Object)>) -> Table {
    let mut table = Table::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (line, object) in objects {
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
        table.rows.push(Row { line, cells });
    }
    table
}

/// What stands between the values of a table: the comma, but where the first line has none and something else instead.
fn separator(content: &str) -> u8 {
    let names = content.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let other = b";\t".iter().copied().find(|&s| !names.contains(',') && names.contains(s as char));
    other.unwrap_or(b',')
}

/// Values with separators between them, names in the first line.
fn separated(path: &Path, content: &str, separator: u8) -> Result<Table, Error> {
    let help = "the first line names the columns, and every other line has as many";
    let wrong = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(source) => Error::io("read", path)(source),
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.map_or(0, |p| p.line());
            Error::data(path, format!("line {line} has {len} values, and others {expected_len}"), help)
        }
        kind => Error::data(path, format!("is no readable table: {kind:?}"), help),
    };
    // Tab-separated data sets do not quote.
    let mut reader = csv::ReaderBuilder::new();
    let mut reader = reader.delimiter(separator).quoting(separator != b'\t').from_reader(content.as_bytes());
    let names = reader.headers().map_err(wrong)?.iter().map(str::to_string).collect();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let number = record.position().map_or(0, |p| p.line() as usize);
        rows.push(Row::new(number, record.iter().map(str::to_string)));
    }
    Ok(Table { names, rows, notes: Vec::new() })
}

/// One text a line; columns with tabs between them where columns are asked for by number.
fn lines(content: &str, columns: &Columns) -> Table {
    let full = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if columns.texts.is_empty() && columns.label.is_none() {
        let rows: Vec<Row> = full.map(|(i, line)| Row::new(i + 1, [line.to_string()])).collect();
        let is_table = content.lines().all(|line| line.contains('\t') || line.trim().is_empty());
        let note = "every line has a tab and was taken for one text; name columns by number with --text-columns 1";
        return Table { names: vec!["text".into()], rows, notes: is_table.then(|| note.into()).into_iter().collect() };
    }
    let rows: Vec<Row> = full.map(|(i, line)| Row::new(i + 1, line.split('\t').map(str::to_string))).collect();
    let width = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    Table { names: (1..=width).map(|n| n.to_string()).collect(), rows, notes: Vec::new() }
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
    fn empty_lines_part_documents_where_there_are_any() {
        assert_eq!(blocks("a\nb\n"), ["a", "b"]);
        assert_eq!(blocks("\n= a =\nb\n\n \nc\n"), ["= a =\nb", "c"]);
        assert_eq!(blocks("a\n\nb\n\n"), ["a", "b"]);
        assert_eq!(blocks(" \n"), [] as [&str; 0]);
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
        assert!(message(rows("x.jsonl", "[1]\n", &[], None)).contains("no list of JSON objects"));
        assert!(message(rows("x.jsonl", "1\n", &[], None)).contains("line 1 is no JSON object"));
        assert!(message(rows("x.csv", "a,b\n1\n", &["a"], None)).contains("line 2 has 1 values, and others 2"));
    }
}
