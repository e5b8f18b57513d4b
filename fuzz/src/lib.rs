//! What the fuzzer feeds: one function for each target, from bytes to nothing. Each panics if a promise is broken.
//!
//! The integration tests include these files and replay the saved inputs, so that what the fuzzer found once is checked
//! without it.

mod directory;
mod document;
pub mod guard;
pub mod log;
mod model;
mod records;
mod recovery;

pub use directory::{directory, directory_on, fill};
pub use document::document;
pub use guard::guard;
pub use log::{frame, log};
pub use model::model;
pub use records::{record, tree_path};
pub use recovery::recovery;

const SEGMENT_BYTES: u64 = 64 << 10;

/// The input, taken apart. What is missing at its end is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let byte = self.0.first().copied().unwrap_or(0);
        self.0 = self.0.get(1..).unwrap_or_default();
        byte
    }

    fn two_bytes(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// A number that is mostly small, and sometimes any.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => {
                let bytes = self.bytes(8);
                bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
            }
            254 => u64::MAX,
            small => u64::from(small),
        }
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn some_bytes(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte());
        self.bytes(count)
    }
}
