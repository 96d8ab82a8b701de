//! A file as messages are decoded from it.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek};

use bytes::{Buf, Bytes};

/// How much is looked at in one piece.
const WINDOW: usize = 1 << 16;

/// A file, read as it is decoded. What the decoder takes in one piece, such as the numbers of a tensor, is read to a place
/// of its own: nothing is held twice, each piece goes when nobody needs it, and numbers lie where the processor reads them.
///
/// A decoder cannot be told of what goes wrong on the way, so the file seems to end there: ask [`Stream::failure`].
pub(super) struct Stream {
    file: File,
    /// Bytes of the file behind the window.
    behind: usize,
    window: Vec<u8>,
    /// Where in the window the rest begins.
    at: usize,
    failure: Option<Error>,
}

impl Stream {
    /// The whole of a file.
    ///
    /// # Errors
    /// Where its length cannot be had, or is larger than memory.
    pub(super) fn new(mut file: File) -> Result<Self> {
        let length = file.metadata()?.len();
        let behind = usize::try_from(length).map_err(|_| ErrorKind::OutOfMemory)?;
        file.rewind()?;
        let mut stream = Self { file, behind, window: Vec::new(), at: 0, failure: None };
        stream.refill();
        Ok(stream)
    }

    /// Why the file seems to have ended before its end.
    pub(super) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    fn rest(&self) -> usize {
        self.window.len() - self.at
    }

    /// Looks at the next piece.
    fn refill(&mut self) {
        self.window.clear();
        self.at = 0;
        let mut window = std::mem::take(&mut self.window);
        self.take(&mut window, self.behind.min(WINDOW));
        self.window = window;
    }

    /// Appends so many of the bytes behind the window.
    fn take(&mut self, to: &mut Vec<u8>, count: usize) {
        let read = match to.try_reserve_exact(count) {
            Ok(()) => (&self.file).take(count as u64).read_to_end(to),
            Err(_) => Err(ErrorKind::OutOfMemory.into()),
        };
        let read = read.and_then(|read| match count - read {
            0 => Ok(()),
            missing => Err(cut_short(missing, self.behind)),
        });
        match read {
            Ok(()) => self.behind -= count,
            Err(error) => {
                self.behind = 0;
                self.failure = Some(error);
            }
        }
    }
}

fn cut_short(missing: usize, expected: usize) -> Error {
    let reason = format!("it was cut short meanwhile: {missing} of the {expected} bytes to come are not there");
    Error::new(ErrorKind::UnexpectedEof, reason)
}

impl Buf for Stream {
    fn remaining(&self) -> usize {
        self.rest() + self.behind
    }

    fn chunk(&self) -> &[u8] {
        self.window.get(self.at..).unwrap_or_default()
    }

    fn advance(&mut self, mut count: usize) {
        while count >= self.rest() && self.remaining() > 0 {
            count -= self.rest();
            self.refill();
        }
        self.at += count.min(self.rest());
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        let seen = count.min(self.rest());
        let mut piece = Vec::new();
        if piece.try_reserve_exact(count).is_err() {
            self.failure = Some(ErrorKind::OutOfMemory.into());
            (self.behind, self.at) = (0, self.window.len());
            return Bytes::new();
        }
        piece.extend_from_slice(self.chunk().get(..seen).unwrap_or_default());
        self.at += seen;
        if seen < count {
            self.take(&mut piece, count - seen);
        }
        if self.rest() == 0 {
            self.refill();
        }
        piece.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// Bytes that tell where they are from.
    fn written(length: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let content: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();
        (file, content)
    }

    #[test]
    fn pieces_within_and_across_windows_are_those_of_the_file() {
        let (file, content) = written(3 * WINDOW + 17);
        let mut stream = Stream::new(file.reopen().unwrap()).unwrap();
        let mut at = 0;
        for count in [1, 0, 100, WINDOW - 101, 5, 2 * WINDOW, 10] {
            assert_eq!(stream.copy_to_bytes(count), &content[at..at + count]);
            at += count;
            assert_eq!(stream.remaining(), content.len() - at);
            assert!(stream.chunk().first().is_none_or(|&next| next == content[at]));
        }
        assert_eq!(stream.remaining(), 2);
        let mut rest = [0; 2];
        stream.copy_to_slice(&mut rest);
        assert_eq!(rest, content[content.len() - 2..]);
        assert!(!stream.has_remaining() && stream.failure().is_none());

        let mut stream = Stream::new(file.reopen().unwrap()).unwrap();
        stream.advance(2 * WINDOW + 9);
        assert_eq!(stream.get_u8(), content[2 * WINDOW + 9]);
    }

    #[test]
    fn numbers_lie_at_a_place_fit_for_them() {
        let (file, _) = written(WINDOW);
        let mut stream = Stream::new(file.reopen().unwrap()).unwrap();
        stream.advance(3);
        assert!((stream.copy_to_bytes(4096).as_ptr() as usize).is_multiple_of(8));
    }

    #[test]
    fn a_file_that_gets_shorter_meanwhile_seems_to_end_and_says_why() {
        let (file, content) = written(3 * WINDOW);
        let mut stream = Stream::new(file.reopen().unwrap()).unwrap();
        file.as_file().set_len(2 * WINDOW as u64).unwrap();
        assert_eq!(stream.copy_to_bytes(3 * WINDOW), &content[..2 * WINDOW]);
        assert_eq!(stream.remaining(), 0);
        assert!(stream.failure().unwrap().to_string().contains("cut short"));
    }
}
