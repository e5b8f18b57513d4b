//! What a commit costs, beside the least that could make it durable.
//!
//! BARE is one write of the same bytes and one sync; LIMIT adds what any design costs that leaves ordinary files behind
//! (`tests/harness/floor.rs`). Each round measures every variant once, in rotating order, after the file system has been
//! settled; ratios are of one round. `benches/rivals` has other workloads, and other programs. Run it on a quiet machine:
//!
//!     cargo bench --bench commit                       makes its own ext4 in a loop device, when run as root
//!     cargo bench --bench commit -- --volume DIR       on the file system of DIR

use std::fs;
use std::path::Path;
use std::time::Instant;

use atomtree::{Checkpoints, Options, Store};
use atomtree_tests::device::Device;
use atomtree_tests::floor::{Bare, Limit};
use atomtree_tests::volume::{Kind, Volume};
use atomtree_vfs::Vfs;
use atomtree_vfs::os::Os;

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
    let bare = Bare::create(&dir.join(format!("bare-{count}-{replaced}")), 4 << 20).expect("a fresh file");
    let limit = Limit::new(&limit_root).expect("a fresh directory");
    limit.create_dir("d").expect("created");
    let (mut bares, mut ours, mut ratios, mut limits, mut flushes) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS + 4 {
        let contents: Vec<Vec<u8>> = (0..count).map(|file| content(round, file)).collect();
        let all = contents.concat();
        let mut times = [0.0; 3];
        for turn in 0..3 {
            let which = (round + turn) % 3;
            settled.sync_filesystem().expect("settled");
            let before = device.work();
            times[which] = match which {
                0 => timed(|| bare.write(&all).expect("written")),
                1 => timed(|| commit(&store, round, replaced, &contents)),
                _ => timed(|| write_limit(&bare, &limit, round, replaced, &contents, &all)),
            };
            if let (1, 4.., Some(before), Some(after)) = (which, round, before, device.work()) {
                flushes.push((after - before).flushes);
            }
        }
        store.checkpoint().expect("a checkpoint");
        limit.clear().expect("removed");
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
        flushes.get(flushes.len() / 2).map_or("?".into(), u64::to_string),
    );
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn write_limit(bare: &Bare, limit: &Limit, round: usize, replaced: bool, contents: &[Vec<u8>], all: &[u8]) {
    bare.write(all).expect("written");
    let dir = if replaced { "d".to_owned() } else { round.to_string() };
    if !replaced {
        limit.create_dir(&dir).expect("created");
    }
    let names: Vec<String> = (0..contents.len()).map(|file| file.to_string()).collect();
    let files = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice));
    limit.put(&dir, replaced, files).expect("put in place");
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

fn quantile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}
