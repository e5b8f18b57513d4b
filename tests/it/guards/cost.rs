//! What guards cost: a look at each file where nothing has changed, and a rename for each that comes back.

use std::time::Instant;

use super::*;

/// So many files, in directories of a hundred.
fn files(root: &Path, count: usize) {
    for number in 0..count {
        if number % 100 == 0 {
            fs::create_dir_all(root.join(format!("d{}", number / 100))).unwrap();
        }
        fs::write(
            root.join(format!("d{}/f{number}", number / 100)),
            format!("content {number}\n").repeat(20),
        )
        .unwrap();
    }
    assert!(Command::new("sync").arg("-f").arg(root).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(30));
}

/// Goal: guarding what has not changed since the last guard copies nothing; what has changed is copied anew, and nothing
/// else; and what is put back is no longer anybody's image. Method: the images made, counted, and their contents.
#[test]
fn what_has_not_changed_is_not_copied_again() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    files(root, 300);
    let store = open(root);
    let guard = store.guard(["**"]).unwrap();
    assert_eq!((guard.names(), guard.copied()), (303, 300));
    guard.keep().unwrap();
    let guard = store.guard(["**"]).unwrap();
    assert_eq!(guard.copied(), 0, "nothing has changed");
    fs::write(root.join("d0/f1"), "edited").unwrap();
    let changed = fs::OpenOptions::new().write(true).open(root.join("d1/f101")).unwrap();
    changed.write_at(b"X", 0).unwrap();
    guard.keep().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let guard = store.guard(["**"]).unwrap();
    assert_eq!(guard.copied(), 2, "two files were edited");
    // The same tick as the capture before, the same size, the same time of modification: only the inode's time tells.
    let before = fs::metadata(root.join("d2/f201")).unwrap();
    let edited = fs::OpenOptions::new().write(true).open(root.join("d2/f201")).unwrap();
    edited.write_at(b"Y", 0).unwrap();
    edited.set_modified(before.modified().unwrap()).unwrap();
    guard.keep().unwrap();
    let guard = store.guard(["**"]).unwrap();
    assert!(guard.copied() >= 1);
    let tree = all(root);
    fs::write(root.join("d2/f201"), "lost").unwrap();
    fs::write(root.join("d0/f2"), "lost").unwrap();
    guard.roll_back().unwrap();
    assert_eq!(all(root), tree);
    // An edit in place of what was put back changes nobody's image.
    fs::write(root.join("d0/f2"), "in place").unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let tree = all(root);
    let guard = store.guard(["**"]).unwrap();
    assert_eq!(guard.copied(), 2, "what was put back was an image and is one no more");
    fs::write(root.join("d0/f2"), "again").unwrap();
    fs::write(root.join("d2/f201"), "again").unwrap();
    guard.roll_back().unwrap();
    assert_eq!(all(root), tree);
    // Names that have gone are forgotten, with their images.
    fs::remove_dir_all(root.join("d1")).unwrap();
    store.guard(["**"]).unwrap().keep().unwrap();
    let images = || fs::read_dir(root.join(".atomtree/guards/cache")).unwrap().count();
    assert!(images() <= 200, "{} images of 200 files", images());
    store.close().unwrap();
}

/// Goal: what guards leave is within the bound, those that were used last stay, and an open guard keeps what it needs.
/// Method: three directories, each under a guard of its own, where two of them fit; the oldest is used again in between.
#[test]
fn the_cache_keeps_to_its_bound() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    for dir in ["a", "b", "c"] {
        fs::create_dir(root.join(dir)).unwrap();
        for number in 0..10 {
            fs::write(root.join(dir).join(number.to_string()), dir.repeat(4096)).unwrap();
        }
    }
    assert!(Command::new("sync").arg("-f").arg(root).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(30));
    // Two pages for each image: the file's, and one more.
    let store = manual().guard_cache_bytes_max(2 * 10 * 8192).open(root).unwrap();
    let images = || {
        let stats = atomtree::Inspection::open(root, &atomtree::Options::new()).unwrap().stats().unwrap();
        assert_eq!(stats.guard_image_bytes, stats.guard_images * 4096);
        stats.guard_images
    };
    let copied = |dir: &str| {
        let guard = store.guard([format!("/{dir}")]).unwrap();
        let copied = guard.copied();
        guard.keep().unwrap();
        copied
    };
    assert_eq!([copied("a"), copied("b")], [10, 10]);
    assert_eq!(copied("a"), 0, "used again, so that b is the oldest");
    assert_eq!(copied("c"), 10);
    assert_eq!(images(), 20);
    assert_eq!([copied("a"), copied("c")], [0, 0], "those that were used last");
    assert_eq!(copied("b"), 10, "what did not fit");
    assert_eq!(images(), 20);
    // What an open guard needs stays beyond the bound, and its files come back.
    let before = all(root);
    let open = store.guard(["/a"]).unwrap();
    assert_eq!([copied("c"), copied("b"), copied("c")], [0, 0, 0]);
    fs::write(root.join("b/0"), "kept").unwrap();
    assert_eq!(copied("b"), 1);
    for number in 0..10 {
        fs::write(root.join("a").join(number.to_string()), "edited").unwrap();
    }
    open.roll_back().unwrap();
    fs::write(root.join("b/0"), "b".repeat(4096)).unwrap();
    let content = |tree: &BTreeMap<PathBuf, Stood>| -> Vec<Vec<u8>> {
        tree.values().map(|stood| stood.content.clone()).collect()
    };
    assert!(content(&all(root)) == content(&before), "what the open guard needs was there");
    store.close().unwrap();
    // A guard that is left is ended by an open with another bound: then nothing is left.
    let store = manual().open(root).unwrap();
    store.guard(["**"]).unwrap().leave();
    drop(store);
    let store = manual().guard_cache_bytes_max(0).open(root).unwrap();
    assert_eq!(fs::read_dir(root.join(".atomtree/guards/cache")).unwrap().count(), 0);
    store.close().unwrap();
}

/// Goal: a file that is edited in the very tick in which its image is taken is not taken for unchanged. Method: many
/// rounds of an edit, a guard at once, another edit at once, and a roll back.
#[test]
fn edits_in_one_tick_are_told_apart() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::write(root.join("a"), "0000").unwrap();
    let store = open(root);
    for round in 0..60 {
        let content = format!("{round:04}");
        fs::write(root.join("a"), &content).unwrap();
        let guard = store.guard(["a"]).unwrap();
        fs::write(root.join("a"), "####").unwrap();
        guard.roll_back().unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), content, "round {round}");
    }
    store.close().unwrap();
}

/// Goal: a page that is mapped and was dirty before is no way around the times. Method: a store to a map before the first
/// guard, and another, to the same page, after it was kept.
#[test]
fn stores_to_a_mapped_page_are_seen() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::write(root.join("a"), vec![b'-'; 8192]).unwrap();
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\n\
        for line in sys.stdin:\n m[10:11]=line[0].encode()\n print('done',flush=True)\n";
    let child = Command::new("python3")
        .args(["-c", script])
        .arg(root.join("a"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: there is no python3");
        return;
    };
    let mut said = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut store_byte = |byte: &str| {
        child.stdin.as_mut().unwrap().write_all(format!("{byte}\n").as_bytes()).unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "done");
    };
    let byte = || fs::read(root.join("a")).unwrap()[10];
    let store = open(root);
    store_byte("1");
    std::thread::sleep(Duration::from_millis(30));
    store.guard(["a"]).unwrap().keep().unwrap();
    store_byte("2");
    std::thread::sleep(Duration::from_millis(30));
    let guard = store.guard(["a"]).unwrap();
    store_byte("3");
    assert_eq!(byte(), b'3');
    guard.roll_back().unwrap();
    assert_eq!(byte(), b'2', "the image of the second guard, and not of the first");
    store_byte("4");
    assert_eq!(byte(), b'2', "whoever holds the old inode can't spoil it");
    drop(said);
    drop(child.stdin.take());
    child.wait().unwrap();
    store.close().unwrap();
}

/// The figures; run with `--nocapture`. `ATOMTREE_GUARD_DIR` says on which file system.
#[test]
fn what_guards_take() {
    for count in [100, 10_000] {
        let scratch = match std::env::var_os("ATOMTREE_GUARD_DIR") {
            Some(dir) => tempfile::tempdir_in(dir).unwrap(),
            None => tempfile::tempdir().unwrap(),
        };
        let root = scratch.path();
        files(root, count);
        let store = open(root);
        let time = |what: &str, act: &mut dyn FnMut()| {
            let start = Instant::now();
            act();
            println!("{count} files, {what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        };
        let mut guard = None;
        time("the first guard", &mut || guard = Some(store.guard(["**"]).unwrap()));
        time("kept", &mut || guard.take().unwrap().keep().unwrap());
        time("guarded again, unchanged", &mut || guard = Some(store.guard(["**"]).unwrap()));
        assert_eq!(guard.as_ref().unwrap().copied(), 0);
        for number in 0..100 {
            fs::write(
                root.join(format!(
                    "d{}/f{}",
                    number % (count / 100),
                    number % (count / 100) * 100 + number % 100
                )),
                "edited",
            )
            .unwrap();
        }
        time("100 changed, rolled back", &mut || drop(guard.take().unwrap().roll_back().unwrap()));
        time("guarded again, 100 put back", &mut || guard = Some(store.guard(["**"]).unwrap()));
        for number in 0..count {
            fs::write(root.join(format!("d{}/f{number}", number / 100)), "edited").unwrap();
        }
        time("all changed, rolled back", &mut || drop(guard.take().unwrap().roll_back().unwrap()));
        assert!(fs::read_to_string(root.join("d0/f7")).unwrap().starts_with("content 7\n"));
        store.close().unwrap();
    }
}
