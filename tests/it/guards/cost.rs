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
