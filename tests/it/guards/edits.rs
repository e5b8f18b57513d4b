//! What programs do to files in place.

use super::*;

type Edit = fn(&Path);

/// Each alone.
pub(crate) const ALL: &[(&str, Edit)] = &[
    ("writes in place, same length", |root| {
        let file = fs::OpenOptions::new().write(true).open(root.join("config/app.toml")).unwrap();
        file.write_at(b"NAME", 3).unwrap();
    }),
    ("writes in place and sets the time back", |root| {
        let path = root.join("config/deep/x");
        let before = fs::metadata(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_at(b"NAME", 3).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
    }),
    ("truncates", |root| fs::File::create(root.join("config/deep/x")).map(drop).unwrap()),
    ("appends", |root| {
        let mut file = fs::OpenOptions::new().append(true).open(root.join("config/app.toml")).unwrap();
        file.write_all(b"more").unwrap();
    }),
    ("writes through one of two names", |root| fs::write(root.join("src/linked"), "both").unwrap()),
    ("replaces one of two names", |root| {
        fs::write(root.join("passing"), "new").unwrap();
        fs::rename(root.join("passing"), root.join("top")).unwrap();
    }),
    ("removes one of two names", |root| fs::remove_file(root.join("src/linked")).unwrap()),
    ("creates", |root| fs::write(root.join("config/new"), "new").unwrap()),
    ("creates trees", |root| {
        fs::create_dir_all(root.join("new/x/y/z")).unwrap();
        fs::write(root.join("new/x/y/z/file"), "new").unwrap();
        symlink("/", root.join("new/x/root")).unwrap();
    }),
    ("removes", |root| fs::remove_file(root.join("config/app.toml")).unwrap()),
    ("removes trees", |root| {
        fs::remove_dir_all(root.join("config")).unwrap();
        fs::remove_dir_all(root.join("src")).unwrap();
    }),
    ("removes an empty directory", |root| fs::remove_dir(root.join("empty")).unwrap()),
    ("renames over", |root| {
        fs::write(root.join("passing"), "new").unwrap();
        fs::rename(root.join("passing"), root.join("config/app.toml")).unwrap();
    }),
    ("renames a directory", |root| fs::rename(root.join("config"), root.join("renamed")).unwrap()),
    ("swaps directories", |root| {
        fs::rename(root.join("swap/one"), root.join("swap/passing")).unwrap();
        fs::rename(root.join("swap/two"), root.join("swap/one")).unwrap();
        fs::rename(root.join("swap/passing"), root.join("swap/two")).unwrap();
    }),
    ("moves a directory into another", |root| fs::rename(root.join("src"), root.join("empty/src")).unwrap()),
    ("changes modes", |root| {
        fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(root.join("config"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join("closed/f"), "opened").unwrap();
    }),
    ("closes a directory", |root| {
        fs::write(root.join("src/a/b/main.rs"), "edited").unwrap();
        fs::set_permissions(root.join("src/a/b/main.rs"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(root.join("src/a"), fs::Permissions::from_mode(0o000)).unwrap();
    }),
    ("changes attributes", |root| {
        set_xattr(&root.join("config/app.toml"), b"changed");
        set_xattr(&root.join("config"), b"changed");
        set_xattr(&root.join("src"), b"new");
        set_xattr(&root.join("top"), b"new");
    }),
    ("makes a file a directory", |root| {
        fs::remove_file(root.join("top")).unwrap();
        fs::create_dir_all(root.join("top/below")).unwrap();
        fs::write(root.join("top/below/x"), "x").unwrap();
    }),
    ("makes a directory a file", |root| {
        fs::remove_dir_all(root.join("config")).unwrap();
        fs::write(root.join("config"), "x").unwrap();
    }),
    ("makes a directory a symlink", |root| {
        fs::rename(root.join("config"), root.join("real")).unwrap();
        symlink("real", root.join("config")).unwrap();
        fs::write(root.join("config/app.toml"), "through the link").unwrap();
    }),
    ("changes symlinks", |root| {
        fs::remove_file(root.join("link")).unwrap();
        symlink("elsewhere", root.join("link")).unwrap();
        fs::remove_file(root.join("src/dangling")).unwrap();
        fs::write(root.join("src/dangling"), "a file").unwrap();
    }),
    ("links files together", |root| {
        fs::remove_file(root.join("run.sh")).unwrap();
        fs::hard_link(root.join("config/app.toml"), root.join("run.sh")).unwrap();
        fs::hard_link(root.join("config/app.toml"), root.join("another")).unwrap();
    }),
    ("writes to a map", |root| {
        // A page that is stored to, and written back some time later.
        let script =
            "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[100:104]=b'mmap'\n";
        let path = root.join("config/deep/x");
        if !Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .status()
            .is_ok_and(|status| status.success())
        {
            fs::write(path, "there is no python3").unwrap();
        }
    }),
];

/// That edit.
pub(crate) fn one(edit: &'static (&str, Edit)) -> Box<dyn Fn(&Path)> {
    Box::new(edit.1)
}

/// As many of them as get along with each other, what takes things away last.
pub(crate) fn all() -> Box<dyn Fn(&Path)> {
    let alone = [
        "removes one of two names",
        "removes trees",
        "moves a directory into another",
        "removes an empty directory",
        "renames a directory",
        "changes attributes",
        "makes a directory a file",
        "makes a directory a symlink",
        "links files together",
        "writes to a map",
    ];
    let takes_away = ["removes", "renames over", "closes", "makes a file a directory"];
    let is_last = |name: &str| takes_away.iter().any(|one| name.starts_with(one));
    let some: Vec<_> = ALL.iter().filter(|(name, _)| !alone.contains(name)).collect();
    let first = some.iter().filter(|(name, _)| !is_last(name));
    let last = some.iter().filter(|(name, _)| is_last(name));
    let edits: Vec<Edit> = first.chain(last).map(|one| one.1).collect();
    Box::new(move |root| edits.iter().for_each(|edit| edit(root)))
}
