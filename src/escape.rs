//! Names that come from files, made harmless for whoever shows them.

use std::borrow::Cow;
use std::fmt::Write;

/// Text for a terminal or a page: characters that steer it, or turn the direction of writing, are spelled out. Ends
/// of lines stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    replaced(text, |c| c != '\n' && steers(c), |out, c| write!(out, "{}", c.escape_unicode()))
}

/// The same for JSON that is complete, in which characters may be spelled out as `\uXXXX`.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    replaced(
        json,
        |c| c != '\n' && steers(c),
        |out, c| {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
        },
    )
}

/// Whether a character is more than a mark on the screen: control characters, marks of direction, ends of lines
/// that terminals do not know, and the characters that tag others.
fn steers(c: char) -> bool {
    let is_mark = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || is_mark || matches!(c, '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

fn replaced(
    text: &str,
    is_wanted: impl Fn(char) -> bool,
    write: impl Fn(&mut String, char) -> std::fmt::Result,
) -> Cow<'_, str> {
    if !text.contains(&is_wanted) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_wanted(c) {
            true => write(&mut out, c).unwrap_or_default(),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_spelled_out() {
        let hostile = "a\u{1b}]0;title\u{7}b\r\u{9b}31m\u{202e}c\td\ne";
        let shown = printable(hostile);
        assert_eq!(shown, "a\\u{1b}]0;title\\u{7}b\\u{d}\\u{9b}31m\\u{202e}c\\u{9}d\ne");
        assert!(matches!(printable("plain: é, 漢字, →"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_what_it_means() {
        let text = "\u{9b}31m \u{202e} \u{e0041}";
        let json = serde_json::to_string(text).unwrap();
        let shown = printable_json(&json);
        assert!(shown.is_ascii());
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }
}
