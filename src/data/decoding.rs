//! Text of files in UTF-8 or UTF-16.

use std::path::Path;

use crate::error::Error;
use crate::store;

const HELP: &str = "save it as UTF-8, for example with iconv -f ENCODING -t UTF-8";

/// The text of a file: in UTF-8, or in UTF-16 with a mark at its beginning that says so.
///
/// # Errors
/// Where it cannot be read, or is in another encoding: that is not guessed, since other letters are other tokens.
pub(super) fn text_of(path: &Path) -> Result<String, Error> {
    let bytes = Vec::from(store::read(path).map_err(Error::io("read", path))?);
    let wrong = |reason: String| Error::data(path, reason, HELP);
    let text = match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, text @ ..] => utf8(text.to_vec()),
        [0xff, 0xfe, text @ ..] => utf16(text, u16::from_le_bytes),
        [0xfe, 0xff, text @ ..] => utf16(text, u16::from_be_bytes),
        _ => utf8(bytes),
    };
    let text = text.map_err(wrong)?;
    match text.find('\0') {
        Some(place) => Err(wrong(format!("line {} holds the byte 0, as no text does", line(&text, place)))),
        None => Ok(text),
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(place).copied().unwrap_or_default();
        let before = String::from_utf8_lossy(error.as_bytes().get(..place).unwrap_or_default());
        format!("line {} is no text in UTF-8: there is the byte {byte:#04x}", line(&before, before.len()))
    })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let text: Result<String, _> = char::decode_utf16(pairs.iter().map(|&pair| unit(pair))).collect();
    text.ok().filter(|_| rest.is_empty()).ok_or_else(|| "begins like UTF-16, and is damaged".to_string())
}

/// The number of the line at a place.
fn line(text: &str, place: usize) -> usize {
    text.get(..place).unwrap_or_default().matches('\n').count() + 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        text_of(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_mark_says_how_text_is_encoded() {
        assert_eq!(read(b"a\xc3\xa9").unwrap(), "aé");
        assert_eq!(read(b"\xef\xbb\xbfa").unwrap(), "a");
        assert_eq!(read(b"\xff\xfea\0\xe9\0").unwrap(), "aé");
        assert_eq!(read(b"\xfe\xff\0a").unwrap(), "a");
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_line() {
        assert!(read(b"a\nb\xe9").unwrap_err().contains("line 2 is no text in UTF-8: there is the byte 0xe9"));
        assert!(read(b"a\0").unwrap_err().contains("line 1 holds the byte 0"));
        assert!(read(b"\xff\xfea\0\0\xd8").unwrap_err().contains("damaged"));
        assert!(read(b"\xff\xfea\0b").unwrap_err().contains("damaged"));
    }
}
