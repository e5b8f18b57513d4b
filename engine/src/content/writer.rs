//! Writes a content that is too large for the log, so that the device works while what follows is copied and digested.

use std::io::{self, IoSlice};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use atomtree_recovery::image::Digest;
use atomtree_vfs::File;

/// What is written at once, about.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// How much is sent to the device at once: each time costs a look at all processors' caches of pages.
const WRITE_BACK_BYTES: u64 = 1 << 20;
/// What a content has beyond this is digested on a thread of its own, which a smaller one would not be worth.
const DIGESTED_HERE_BYTES_MAX: u64 = 4 << 20;
/// How many pieces wait to be digested, at most.
const WAITING_MAX: usize = 4;

/// See the file's head. Nothing is durable before the file is synced.
pub(crate) struct Writer<'a> {
    file: Option<&'a dyn File>,
    size: u64,
    /// How much of it is on its way to the device.
    written_back: u64,
    digesting: Digesting,
}

enum Digesting {
    Here(Box<blake3::Hasher>),
    /// On a thread that takes full buffers and gives them back.
    Beside {
        full: SyncSender<Vec<u8>>,
        used: Receiver<Vec<u8>>,
        thread: JoinHandle<Digest>,
    },
}

impl<'a> Writer<'a> {
    /// From the beginning of a file that is empty.
    pub(crate) fn new(file: &'a dyn File) -> Self {
        Self { file: Some(file), ..Self::of_nothing() }
    }

    /// Only digests.
    pub(crate) fn of_nothing() -> Self {
        Self { file: None, size: 0, written_back: 0, digesting: Digesting::Here(Box::default()) }
    }

    /// Goes on with this piece. Returns a buffer for the next, with anything in it.
    pub(crate) fn write(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        let offset = self.size;
        self.size += piece.len() as u64;
        if let Some(file) = self.file {
            file.write_at(&[IoSlice::new(&piece)], offset)?;
            let waiting = self.size - self.written_back;
            if waiting >= WRITE_BACK_BYTES {
                file.start_write_back(self.written_back, waiting);
                self.written_back = self.size;
            }
        }
        match &mut self.digesting {
            Digesting::Here(hasher) => {
                hasher.update(&piece);
                if self.size > DIGESTED_HERE_BYTES_MAX {
                    // Where there is no thread to be had, this one goes on.
                    if let Ok(beside) = beside(hasher) {
                        self.digesting = beside;
                    }
                }
                Ok(piece)
            }
            Digesting::Beside { full, used, .. } => {
                full.send(piece).expect("the thread takes whatever comes");
                Ok(used.try_recv().unwrap_or_default())
            }
        }
    }

    /// The length and the digest of all that was written.
    pub(crate) fn finish(self) -> (u64, Digest) {
        let digest = match self.digesting {
            Digesting::Here(hasher) => digest_of(&hasher),
            Digesting::Beside { full, thread, .. } => {
                drop(full);
                thread.join().expect("digesting does not panic")
            }
        };
        (self.size, digest)
    }
}

/// Goes on digesting on a thread.
fn beside(hasher: &blake3::Hasher) -> io::Result<Digesting> {
    let (full, filled) = sync_channel::<Vec<u8>>(WAITING_MAX);
    let (give_back, used) = channel();
    let mut hasher = hasher.clone();
    let thread = Builder::new().name("atomtree-digest".into()).spawn(move || {
        for piece in filled {
            hasher.update(&piece);
            // At the end nobody wants it any more.
            let _ = give_back.send(piece);
        }
        digest_of(&hasher)
    })?;
    Ok(Digesting::Beside { full, used, thread })
}

fn digest_of(hasher: &blake3::Hasher) -> Digest {
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use atomtree_vfs::Vfs;
    use atomtree_vfs::os::Os;

    use super::*;

    /// Goal: what is written is what was given, and has its digest, on either thread. Method: lengths around a piece and
    /// around what is digested here, in buffers that come back with something in them.
    #[test]
    fn what_is_written_has_its_digest() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Os.open_root(scratch.path()).unwrap();
        let (here, mib) = (DIGESTED_HERE_BYTES_MAX as usize, WRITE_BACK_BYTES as usize);
        for size in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, mib, here, here + 1, 2 * here + 77]
        {
            let words = (0..size as u32).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes());
            let bytes: Vec<u8> = words.take(size).collect();
            let file = root.create_file(OsStr::new(&size.to_string()), 0o600).unwrap();
            let (mut writer, mut piece) = (Writer::new(&*file), Vec::new());
            for part in bytes.chunks(PIECE_BYTES) {
                piece.clear();
                piece.extend_from_slice(part);
                piece = writer.write(piece).unwrap();
            }
            assert_eq!(writer.finish(), (bytes.len() as u64, Digest::of(&bytes)), "{size} bytes");
            assert!(file.read_all(u64::MAX).unwrap() == bytes, "{size} bytes");
        }
    }
}
