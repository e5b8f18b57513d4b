//! What a commit costs, beside the least that could make it durable.
//!
//! BARE is one `pwrite` of the same bytes and one `fdatasync`, into a file whose blocks are all written: no names, no
//! atomicity of several files. LIMIT is BARE, and for each file a temporary file created, written and renamed (or
//! exchanged with what it replaces), unsynced: what any design costs that leaves ordinary files behind. Each round measures every variant once, in rotating order, after the file system has
//! been settled; ratios are of one round. Run it on a quiet machine:
//!
//!     cargo bench --bench commit                       makes its own ext4 in a loop device, when run as root
//!     cargo bench --bench commit -- --volume DIR       on the file system of DIR

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use atomtree::{Checkpoints, Options, Store};
use atomtree_tests::volume::{Kind, Volume};
use atomtree_vfs::os::Os;
use atomtree_vfs::{Dir, Vfs};

const ROUNDS: usize = 41;
const COUNTS: [usize; 3] = [1, 10, 100];
const FILE_BYTES: usize = 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let volume = arguments.iter().position(|argument| argument == "--volume");
    match volume.and_then(|at| arguments.get(at + 1)) {
        Some(dir) => {
            let scratch = tempfile::tempdir_in(dir).expect("the volume can be written to");
            measure(scratch.path(), dir);
        }
        None => match Volume::create(Kind::Ext4, 1 << 30, true) {
            Ok(volume) => measure(volume.path(), "ext4, defaults, loop device"),
            Err(reason) => {
                eprintln!("no loop-mounted ext4 ({reason}): measuring the current directory's file system");
                let scratch = tempfile::tempdir_in(".").expect("the current directory can be written to");
                measure(scratch.path(), "the current directory");
            }
        },
    }
}

fn measure(dir: &Path, volume: &str) {
    let device = Device::under(dir);
    println!("volume: {volume}; {ROUNDS} rounds; files of {FILE_BYTES} bytes; medians");
    println!(
        "{:>12} {:>6} {:>9} {:>9} {:>8} {:>8} {:>12} {:>9}",
        "workload", "files", "BARE us", "us", "x BARE", "p90", "LIMIT/BARE", "flushes"
    );
    for count in COUNTS {
        for replaced in [false, true] {
            one(dir, &device, count, replaced);
        }
    }
    open_after_close(dir);
}

/// One workload: a transaction of `count` files, new or replaced, beside BARE and LIMIT.
fn one(dir: &Path, device: &Device, count: usize, replaced: bool) {
    let [root, limit_root] = ["ours", "limit"].map(|who| {
        let root = dir.join(format!("{who}-{count}-{replaced}"));
        fs::create_dir(&root).expect("a fresh directory");
        root
    });
    // The checkpoint is measured elsewhere; here it happens between samples.
    let store = Options::new().checkpoints(Checkpoints::Manual).open(&root).expect("a fresh store");
    // Settled before each sample, so that none pays for another's leftovers.
    let settled = Os.open_root(dir).expect("the volume");
    let bare = bare_file(&dir.join(format!("bare-{count}-{replaced}")));
    let limit = Limit::new(&limit_root, &bare);
    let (mut bares, mut ours, mut ratios, mut limits, mut flushes) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS + 4 {
        let contents: Vec<Vec<u8>> = (0..count).map(|file| content(round, file)).collect();
        let all = contents.concat();
        let mut times = [0.0; 3];
        for turn in 0..3 {
            let which = (round + turn) % 3;
            settled.sync_filesystem().expect("settled");
            let before = device.flushes();
            times[which] = match which {
                0 => timed(|| write_bare(&bare, &all)),
                1 => timed(|| commit(&store, round, replaced, &contents)),
                _ => timed(|| limit.write(round, replaced, &contents, &all)),
            };
            if which == 1 && round >= 4 {
                flushes.push(device.flushes() - before);
            }
        }
        store.checkpoint().expect("a checkpoint");
        limit.clear();
        if round < 4 {
            continue; // warming up: the first replaces nothing yet
        }
        bares.push(times[0] * 1e6);
        ours.push(times[1] * 1e6);
        ratios.push(times[1] / times[0]);
        limits.push(times[2] / times[0]);
    }
    store.close().expect("closed");
    flushes.sort_unstable();
    println!(
        "{:>12} {count:>6} {:>9.0} {:>9.0} {:>8.2} {:>8.2} {:>12.2} {:>9}",
        if replaced { "replaced" } else { "new" },
        quantile(&mut bares, 50),
        quantile(&mut ours, 50),
        quantile(&mut ratios, 50),
        quantile(&mut ratios, 90),
        quantile(&mut limits, 50),
        if device.is_known() { flushes[flushes.len() / 2].to_string() } else { "?".into() },
    );
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn write_bare(bare: &File, all: &[u8]) {
    bare.write_all_at(all, 0).expect("written");
    bare.sync_data().expect("synced");
}

/// What any design costs that leaves ordinary files behind.
struct Limit<'a> {
    bare: &'a File,
    root: Arc<dyn Dir>,
    temporary: Arc<dyn Dir>,
}

impl<'a> Limit<'a> {
    fn new(root: &Path, bare: &'a File) -> Self {
        let root = Os.open_root(root).expect("it was made");
        for name in ["temporary", "d"] {
            root.create_dir(OsStr::new(name), 0o777).expect("created");
        }
        Self { bare, temporary: root.open_dir(Path::new("temporary")).expect("it was made"), root }
    }

    fn write(&self, round: usize, replaced: bool, contents: &[Vec<u8>], all: &[u8]) {
        write_bare(self.bare, all);
        let target = if replaced { "d".to_owned() } else { round.to_string() };
        if !replaced {
            self.root.create_dir(OsStr::new(&target), 0o777).expect("created");
        }
        let target = self.root.open_dir(Path::new(&target)).expect("it is there");
        for (file, content) in contents.iter().enumerate() {
            let name = OsString::from(file.to_string());
            let staged = self.temporary.create_file(&name, 0o666).expect("created");
            staged.write_at(&[IoSlice::new(content)], 0).expect("written");
            let exchanged = replaced && self.temporary.exchange(&name, &*target, &name).is_ok();
            if !exchanged {
                self.temporary.rename(&name, &*target, &name).expect("renamed");
            }
        }
    }

    /// Removes the originals that were exchanged, as a checkpoint does.
    fn clear(&self) {
        for entry in self.temporary.list().expect("listed") {
            self.temporary.remove_file(&entry.name).expect("removed");
        }
    }
}

fn commit(store: &Store, round: usize, replaced: bool, contents: &[Vec<u8>]) {
    let mut tx = store.begin().expect("begun");
    for (file, content) in contents.iter().enumerate() {
        let path = if replaced { format!("d/{file}") } else { format!("{round}/{file}") };
        tx.write(path, content.as_slice()).expect("written");
    }
    tx.commit().expect("committed");
}

/// Opening a store that was closed cleanly must not depend on what it holds.
fn open_after_close(dir: &Path) {
    for files in [10, 10_000] {
        let root = dir.join(format!("open-{files}"));
        fs::create_dir(&root).expect("a fresh directory");
        let store = Store::open(&root).expect("a fresh store");
        let mut tx = store.begin().expect("begun");
        for file in 0..files {
            tx.write(format!("{}/{file}", file % 100), content(0, file)).expect("written");
        }
        tx.commit().expect("committed");
        store.close().expect("closed");
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                let store = Store::open(&root).expect("opened");
                let time = start.elapsed().as_secs_f64() * 1e6;
                store.close().expect("closed");
                time
            })
            .collect();
        println!("{:>12} {files:>6} {:>9} {:>9.0}", "open", "", quantile(&mut times, 50));
    }
}

fn content(round: usize, file: usize) -> Vec<u8> {
    let seed = format!("{round} {file} ");
    seed.bytes().cycle().take(FILE_BYTES).collect()
}

fn bare_file(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).expect("a fresh file");
    file.write_all_at(&vec![0; 4 << 20], 0).expect("written");
    file.sync_all().expect("synced");
    file
}

fn quantile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

/// The block device under a directory, for its count of flushes.
struct Device(Option<PathBuf>);

impl Device {
    fn under(dir: &Path) -> Self {
        use std::os::linux::fs::MetadataExt;
        let device = fs::metadata(dir).expect("it exists").st_dev();
        let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
        let stat = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        Self(stat.exists().then_some(stat))
    }

    fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Flushes so far: the sixteenth field of the device's statistics.
    fn flushes(&self) -> u64 {
        let Some(path) = &self.0 else { return 0 };
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().nth(15).and_then(|field| field.parse().ok()).unwrap_or(0)
    }
}
