//! Lines of bounded length from a stream of any content.
//!
//! A line that is too long is read past, not read in: what it costs is its time, never its memory.

use std::io::{self, BufRead};

/// What stands on a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Its bytes, without the end of line.
    Whole(Vec<u8>),
    /// More bytes than allowed.
    TooLong,
}

/// Reads the lines of `input`, each of at most `bytes_max` bytes.
pub(crate) struct Lines<R> {
    input: R,
    bytes_max: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R, bytes_max: u64) -> Self {
        Self { input, bytes_max }
    }

    /// The next line, or `None` at the end of input. The last one need not end in a line feed.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let mut length = 0;
        loop {
            let piece = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            if piece.is_empty() && length == 0 {
                return Ok(None);
            }
            let end = piece.iter().position(|&byte| byte == b'\n');
            let part = &piece[..end.unwrap_or(piece.len())];
            let is_last = end.is_some() || piece.is_empty();
            length += part.len() as u64;
            if length <= self.bytes_max {
                bytes.extend_from_slice(part);
            } else {
                bytes = Vec::new();
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if is_last {
                return Ok(Some(if length <= self.bytes_max { Line::Whole(bytes) } else { Line::TooLong }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no division of the stream into pieces changes its lines. Method: every size of the buffer.
    #[test]
    fn lines_do_not_depend_on_how_they_arrive() {
        let text = b"ab\n\nabc\nabcd\nabcdefgh\nxyz";
        let whole = |text: &str| Line::Whole(text.into());
        let expected = [whole("ab"), whole(""), whole("abc"), Line::TooLong, Line::TooLong, whole("xyz")];
        for capacity in 1..=text.len() {
            let mut lines = Lines::new(io::BufReader::with_capacity(capacity, text.as_slice()), 3);
            let mut found = Vec::new();
            while let Some(line) = lines.next_line().unwrap() {
                found.push(line);
            }
            assert_eq!(found, expected, "buffer of {capacity}");
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let endless = io::BufReader::new(io::Read::take(io::repeat(b'x'), 100 << 20));
        assert_eq!(Lines::new(endless, 10).next_line().unwrap(), Some(Line::TooLong));
    }
}
