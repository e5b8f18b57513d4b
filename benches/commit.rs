//! What a commit costs, beside the least that could make it durable.
//!
//! BARE is one `pwrite` of the same bytes and one `fdatasync`, into a file whose blocks are all written: no names, no
//! atomicity of several files. Each round measures every variant once, in rotating order, after the file system has
//! been settled; ratios are of one round. Run it on a quiet machine:
//!
//!     cargo bench --bench commit                       makes its own ext4 in a loop device, when run as root
//!     cargo bench --bench commit -- --volume DIR       on the file system of DIR

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atomtree::{Checkpoints, Options, Store};
use atomtree_tests::volume::{Kind, Volume};
use atomtree_vfs::Vfs;

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
        "{:>12} {:>6} {:>10} {:>10} {:>8} {:>9} {:>9}",
        "workload", "files", "bare us", "us", "ratio", "p90", "flushes"
    );
    for count in COUNTS {
        for replaced in [false, true] {
            one(dir, &device, count, replaced);
        }
    }
    open_after_close(dir);
}

/// One workload: a transaction of `count` files, new or replaced, beside BARE.
fn one(dir: &Path, device: &Device, count: usize, replaced: bool) {
    let root = dir.join(format!("{count}-{replaced}"));
    fs::create_dir(&root).expect("a fresh directory");
    // The checkpoint is measured elsewhere; here it happens between samples.
    let store = Options::new().checkpoints(Checkpoints::Manual).open(&root).expect("a fresh store");
    // Settled before each sample, so that none pays for another's leftovers.
    let root_dir = atomtree_vfs::os::Os::default().open_root(dir).expect("the volume");
    let bare = bare_file(&dir.join(format!("bare-{count}-{replaced}")));
    let (mut bares, mut ours, mut ratios, mut flushes) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS + 4 {
        let contents: Vec<Vec<u8>> = (0..count).map(|file| content(round, file)).collect();
        let all = contents.concat();
        let sample = |which: bool| {
            root_dir.sync_filesystem().expect("settled");
            if which {
                let before = device.flushes();
                let time = commit(&store, round, replaced, &contents);
                (time, device.flushes() - before)
            } else {
                let start = Instant::now();
                bare.write_all_at(&all, 0).expect("written");
                bare.sync_data().expect("synced");
                (start.elapsed(), 0)
            }
        };
        let (ours_now, bare_now);
        if round % 2 == 0 {
            bare_now = sample(false);
            ours_now = sample(true);
        } else {
            ours_now = sample(true);
            bare_now = sample(false);
        }
        store.checkpoint().expect("a checkpoint");
        if round < 4 {
            continue; // warming up: the first replaces nothing yet
        }
        bares.push(bare_now.0.as_secs_f64() * 1e6);
        ours.push(ours_now.0.as_secs_f64() * 1e6);
        ratios.push(ours_now.0.as_secs_f64() / bare_now.0.as_secs_f64());
        flushes.push(ours_now.1 as f64);
    }
    store.close().expect("closed");
    println!(
        "{:>12} {count:>6} {:>10.0} {:>10.0} {:>8.2} {:>9.2} {:>9}",
        if replaced { "replaced" } else { "new" },
        quantile(&mut bares, 0.5),
        quantile(&mut ours, 0.5),
        quantile(&mut ratios, 0.5),
        quantile(&mut ratios, 0.9),
        if device.is_known() { format!("{}", quantile(&mut flushes, 0.5)) } else { "?".into() },
    );
}

fn commit(store: &Store, round: usize, replaced: bool, contents: &[Vec<u8>]) -> Duration {
    let start = Instant::now();
    let mut tx = store.begin().expect("begun");
    for (file, content) in contents.iter().enumerate() {
        let path = if replaced { format!("d/{file}") } else { format!("{round}/{file}") };
        tx.write(path, content.as_slice()).expect("written");
    }
    tx.commit().expect("committed");
    start.elapsed()
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
        println!("{:>12} {files:>6} {:>10} {:>10.0}", "open", "", quantile(&mut times, 0.5));
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

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at) as usize]
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
