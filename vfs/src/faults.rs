//! Fault injection: any [`Vfs`] with a rule in front of it that decides which calls fail, and how.
//!
//! Every directory, file and map handed out is wrapped as well, so that one rule sees all calls, in one order. A call
//! that fails is not made on the inner file system; what a failed sync loses is told to a simulated one.

use std::any::Any;
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::sim::errno;
use crate::sim::handles::{SimDir, SimFile};
use crate::{
    Access, Command, Dir, DirFlags, Entry, File, FileSystem, Identity, Lock, Map, Metadata, ProcessIdentity,
    Timestamp, Vfs, Xattr,
};

macro_rules! verbs {
    ($($verb:ident: $trait:ident::$method:ident,)*) => {
        /// A call that can fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $(#[doc = concat!("[`", stringify!($trait), "::", stringify!($method), "`].")] $verb,)*
        }

        impl Verb {
            /// Every verb, for tests that go through all of them.
            pub const ALL: &[Self] = &[$(Self::$verb,)*];

            /// The trait and the method that it stands for.
            pub fn method(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$verb => (stringify!($trait), stringify!($method)),)*
                }
            }
        }
    };
}

verbs! {
    OpenRoot: Vfs::open_root,
    Random: Vfs::random,
    Identity: Vfs::identity,
    Process: Vfs::process,
    EndCommand: Vfs::end_command,
    OpenDir: Dir::open_dir,
    OpenFile: Dir::open_file,
    CreateFile: Dir::create_file,
    CreateDir: Dir::create_dir,
    CreateSymlink: Dir::create_symlink,
    ReadLink: Dir::read_link,
    NameMetadata: Dir::metadata,
    DirMetadata: Dir::own_metadata,
    List: Dir::list,
    DirXattrs: Dir::xattrs,
    SetDirXattr: Dir::set_dir_xattr,
    RemoveDirXattr: Dir::remove_dir_xattr,
    SetDirMode: Dir::set_mode,
    SetDirOwner: Dir::set_owner,
    SetModeOf: Dir::set_mode_of,
    SetOwnerOf: Dir::set_owner_of,
    Rename: Dir::rename,
    RenameOver: Dir::rename_over,
    Exchange: Dir::exchange,
    CheckWritable: Dir::check_writable,
    Flags: Dir::flags,
    CheckRemovable: Dir::check_removable,
    AvailableInodes: Dir::available_inodes,
    Link: Dir::link,
    RemoveFile: Dir::remove_file,
    RemoveDir: Dir::remove_dir,
    SyncDir: Dir::sync,
    SyncFilesystem: Dir::sync_filesystem,
    FileSystem: Dir::file_system,
    ReadAt: File::read_at,
    WriteAt: File::write_at,
    SetLen: File::set_len,
    Allocate: File::allocate,
    NextHole: File::next_hole,
    SyncData: File::sync_data,
    SyncAll: File::sync_all,
    FileMetadata: File::metadata,
    SetMode: File::set_mode,
    SetOwner: File::set_owner,
    SetModified: File::set_modified,
    FileXattrs: File::xattrs,
    SetXattr: File::set_xattr,
    RemoveXattr: File::remove_xattr,
    CopyFrom: File::copy_from,
    DropCache: File::drop_cache,
    WaitForLock: File::wait_for_lock,
    TryLock: File::try_lock,
    Unlock: File::unlock,
    HideFromForks: File::hide_from_forks,
    Map: File::map,
    ReadMap: Map::read,
}

impl Verb {
    /// Whether the verb makes something durable.
    pub fn is_sync(self) -> bool {
        matches!(self, Self::SyncDir | Self::SyncFilesystem | Self::SyncData | Self::SyncAll)
    }
}

/// A call about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number, from 1 on, counted over all verbs that can fail.
    pub number: u64,
    /// What is called.
    pub verb: Verb,
    /// The name or path it is about; for a file and its map, the name it was opened by.
    pub name: Option<OsString>,
    /// The second name of a rename, exchange or link.
    pub other: Option<OsString>,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With this error number, and nothing happens.
    Error(i32),
    /// With this error number, and, if it is a sync of something simulated, what it should have made durable is lost.
    LoseData(i32),
    /// Only so many bytes are written, and never the last one, then `ENOSPC`; for any verb but [`Verb::WriteAt`], just
    /// `ENOSPC`.
    ShortWrite(usize),
}

/// Decides about each call; `None` lets it through.
pub type Rule = Arc<dyn Fn(&Call) -> Option<Fault> + Send + Sync>;

/// Fails call number `number` only.
pub fn fail_nth(number: u64, errno: i32) -> Rule {
    Arc::new(move |call| (call.number == number).then_some(Fault::Error(errno)))
}

/// Fails call number `number` and every later one.
pub fn fail_from(number: u64, errno: i32) -> Rule {
    Arc::new(move |call| (call.number >= number).then_some(Fault::Error(errno)))
}

/// Fails every call of one verb.
pub fn fail_verb(verb: Verb, errno: i32) -> Rule {
    Arc::new(move |call| (call.verb == verb).then_some(Fault::Error(errno)))
}

/// Lets everything through, to count calls.
pub fn fail_nothing() -> Rule {
    Arc::new(|_| None)
}

/// A [`Vfs`] in front of another that fails the calls a [`Rule`] chooses. Clones share rule and count.
#[derive(Clone)]
pub struct Faults {
    inner: Arc<dyn Vfs>,
    judge: Arc<Judge>,
}

struct Judge {
    rule: Mutex<Rule>,
    calls: AtomicU64,
}

impl Judge {
    /// The fault of this call, if it is to fail.
    fn fault(&self, verb: Verb, name: Option<&OsStr>, other: Option<&OsStr>) -> Option<Fault> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        // Cloned, so that a rule may take its time, or look at the file system, without holding up other threads.
        let rule = Arc::clone(&self.rule.lock());
        rule(&Call { number, verb, name: name.map(OsStr::to_owned), other: other.map(OsStr::to_owned) })
    }

    fn check(&self, verb: Verb, name: Option<&OsStr>, other: Option<&OsStr>) -> io::Result<()> {
        self.fault(verb, name, other).map_or(Ok(()), |fault| Err(fault.into_error()))
    }
}

impl Fault {
    fn into_error(self) -> io::Error {
        match self {
            Self::Error(number) | Self::LoseData(number) => errno::error(number),
            Self::ShortWrite(_) => errno::error(errno::ENOSPC),
        }
    }
}

impl Faults {
    /// Puts `rule` in front of `inner`.
    pub fn new(inner: Arc<dyn Vfs>, rule: Rule) -> Self {
        Self { inner, judge: Arc::new(Judge { rule: Mutex::new(rule), calls: AtomicU64::new(0) }) }
    }

    /// Puts another rule in place of the present one; counting goes on.
    pub fn set_rule(&self, rule: Rule) {
        *self.judge.rule.lock() = rule;
    }

    /// How many calls there were so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.judge.calls.load(Ordering::Relaxed)
    }
}

impl Vfs for Faults {
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.judge.check(Verb::OpenRoot, Some(path.as_os_str()), None)?;
        Ok(wrap_dir(self.inner.open_root(path)?, &self.judge))
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn timestamp_granularity_ns(&self) -> i64 {
        self.inner.timestamp_granularity_ns()
    }

    fn random(&self) -> io::Result<u128> {
        self.judge.check(Verb::Random, None, None)?;
        self.inner.random()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.judge.check(Verb::Identity, None, None)?;
        self.inner.identity()
    }

    fn process(&self) -> io::Result<ProcessIdentity> {
        self.judge.check(Verb::Process, None, None)?;
        self.inner.process()
    }

    fn fork_generation(&self) -> u64 {
        self.inner.fork_generation()
    }

    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        self.inner.is_alive(process)
    }

    fn end_command(&self, command: &Command) -> io::Result<Vec<ProcessIdentity>> {
        self.judge.check(Verb::EndCommand, None, None)?;
        self.inner.end_command(command)
    }
}

struct FaultyDir {
    inner: Arc<dyn Dir>,
    judge: Arc<Judge>,
}

struct FaultyFile {
    inner: Arc<dyn File>,
    judge: Arc<Judge>,
    name: OsString,
}

struct FaultyMap {
    inner: Arc<dyn Map>,
    judge: Arc<Judge>,
    name: OsString,
}

fn wrap_dir(inner: Arc<dyn Dir>, judge: &Arc<Judge>) -> Arc<dyn Dir> {
    Arc::new(FaultyDir { inner, judge: Arc::clone(judge) })
}

fn wrap_file(inner: Arc<dyn File>, judge: &Arc<Judge>, name: &OsStr) -> Arc<dyn File> {
    Arc::new(FaultyFile { inner, judge: Arc::clone(judge), name: name.to_owned() })
}

/// The directory that the inner file system knows; itself if it is not wrapped.
fn unwrapped_dir(dir: &dyn Dir) -> &dyn Dir {
    dir.as_any().downcast_ref::<FaultyDir>().map_or(dir, |dir| &*dir.inner)
}

fn unwrapped_file(file: &dyn File) -> &dyn File {
    file.as_any().downcast_ref::<FaultyFile>().map_or(file, |file| &*file.inner)
}

/// The file below all wrappers.
pub(crate) fn inner_file(file: &dyn File) -> &dyn File {
    match file.as_any().downcast_ref::<FaultyFile>() {
        Some(file) => inner_file(&*file.inner),
        None => file,
    }
}

fn inner_dir(dir: &dyn Dir) -> &dyn Dir {
    match dir.as_any().downcast_ref::<FaultyDir>() {
        Some(dir) => inner_dir(&*dir.inner),
        None => dir,
    }
}

impl FaultyDir {
    fn check_sync(&self, verb: Verb) -> io::Result<()> {
        let Some(fault) = self.judge.fault(verb, None, None) else { return Ok(()) };
        if let (Fault::LoseData(_), Some(dir)) = (fault, inner_dir(self).as_any().downcast_ref::<SimDir>()) {
            dir.lose_unsynced(verb == Verb::SyncFilesystem);
        }
        Err(fault.into_error())
    }
}

impl FaultyFile {
    fn check_sync(&self, verb: Verb) -> io::Result<()> {
        let Some(fault) = self.judge.fault(verb, Some(&self.name), None) else { return Ok(()) };
        if let (Fault::LoseData(_), Some(file)) = (fault, inner_file(self).as_any().downcast_ref::<SimFile>())
        {
            file.lose_unsynced();
        }
        Err(fault.into_error())
    }
}

/// Methods that ask the judge and then the inner object; the names that the call is about stand in brackets.
macro_rules! judged {
    ($(
        $verb:ident [$($name:expr)?]:
            fn $method:ident(&$self:ident $(, $argument:ident: $type:ty)*) -> $result:ty;
    )*) => {
        $(fn $method(&$self $(, $argument: $type)*) -> $result {
            $self.judge.check(Verb::$verb, judged!(@name $($name)?), None)?;
            $self.inner.$method($($argument),*)
        })*
    };
    (@name) => { None };
    (@name $name:expr) => { Some($name) };
}

macro_rules! judged_in_two_dirs {
    ($($verb:ident: fn $method:ident;)*) => {
        $(fn $method(&self, name: &OsStr, other_dir: &dyn Dir, other: &OsStr) -> io::Result<()> {
            self.judge.check(Verb::$verb, Some(name), Some(other))?;
            self.inner.$method(name, unwrapped_dir(other_dir), other)
        })*
    };
}

macro_rules! judged_syncs {
    ($($verb:ident: fn $method:ident;)*) => {
        $(fn $method(&self) -> io::Result<()> {
            self.check_sync(Verb::$verb)?;
            self.inner.$method()
        })*
    };
}

impl Dir for FaultyDir {
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.judge.check(Verb::OpenDir, Some(path.as_os_str()), None)?;
        Ok(wrap_dir(self.inner.open_dir(path)?, &self.judge))
    }

    fn open_file(&self, name: &OsStr, access: Access) -> io::Result<Arc<dyn File>> {
        self.judge.check(Verb::OpenFile, Some(name), None)?;
        Ok(wrap_file(self.inner.open_file(name, access)?, &self.judge, name))
    }

    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        self.judge.check(Verb::CreateFile, Some(name), None)?;
        Ok(wrap_file(self.inner.create_file(name, mode)?, &self.judge, name))
    }

    judged! {
        CreateDir [name]: fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()>;
        CreateSymlink [name]: fn create_symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()>;
        ReadLink [name]: fn read_link(&self, name: &OsStr) -> io::Result<OsString>;
        NameMetadata [name]: fn metadata(&self, name: &OsStr) -> io::Result<Metadata>;
        DirMetadata []: fn own_metadata(&self) -> io::Result<Metadata>;
        List []: fn list(&self) -> io::Result<Vec<Entry>>;
        DirXattrs []: fn xattrs(&self) -> io::Result<Vec<Xattr>>;
        SetDirXattr [name]: fn set_dir_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()>;
        RemoveDirXattr [name]: fn remove_dir_xattr(&self, name: &OsStr) -> io::Result<()>;
        SetDirMode []: fn set_mode(&self, mode: u32) -> io::Result<()>;
        SetDirOwner []: fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;
        SetModeOf [name]: fn set_mode_of(&self, name: &OsStr, mode: u32) -> io::Result<()>;
        SetOwnerOf [name]: fn set_owner_of(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()>;
        CheckWritable []: fn check_writable(&self) -> io::Result<()>;
        Flags []: fn flags(&self) -> io::Result<DirFlags>;
        CheckRemovable [name]: fn check_removable(&self, name: &OsStr) -> io::Result<()>;
        AvailableInodes []: fn available_inodes(&self) -> io::Result<Option<u64>>;
        RemoveFile [name]: fn remove_file(&self, name: &OsStr) -> io::Result<()>;
        RemoveDir [name]: fn remove_dir(&self, name: &OsStr) -> io::Result<()>;
        FileSystem []: fn file_system(&self) -> io::Result<FileSystem>;
    }

    judged_in_two_dirs! {
        Rename: fn rename;
        RenameOver: fn rename_over;
        Exchange: fn exchange;
        Link: fn link;
    }

    judged_syncs! {
        SyncDir: fn sync;
        SyncFilesystem: fn sync_filesystem;
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl File for FaultyFile {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        match self.judge.fault(Verb::WriteAt, Some(&self.name), None) {
            None => self.inner.write_at(parts, offset),
            Some(fault) => {
                if let Fault::ShortWrite(bytes) = fault {
                    let most = parts.iter().map(|part| part.len()).sum::<usize>().saturating_sub(1);
                    let all = parts.iter().flat_map(|part| part.iter().copied());
                    let written = all.take(bytes.min(most)).collect::<Vec<u8>>();
                    self.inner.write_at(&[IoSlice::new(&written)], offset)?;
                }
                Err(fault.into_error())
            }
        }
    }

    fn copy_from(&self, source: &dyn File) -> io::Result<u64> {
        self.judge.check(Verb::CopyFrom, Some(&self.name), None)?;
        self.inner.copy_from(unwrapped_file(source))
    }

    fn map(&self) -> io::Result<Arc<dyn Map>> {
        self.judge.check(Verb::Map, Some(&self.name), None)?;
        let (inner, judge) = (self.inner.map()?, Arc::clone(&self.judge));
        Ok(Arc::new(FaultyMap { inner, judge, name: self.name.clone() }))
    }

    judged! {
        ReadAt [&self.name]: fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
        SetLen [&self.name]: fn set_len(&self, bytes: u64) -> io::Result<()>;
        Allocate [&self.name]: fn allocate(&self, bytes: u64) -> io::Result<()>;
        NextHole [&self.name]: fn next_hole(&self, offset: u64) -> io::Result<u64>;
        FileMetadata [&self.name]: fn metadata(&self) -> io::Result<Metadata>;
        SetMode [&self.name]: fn set_mode(&self, mode: u32) -> io::Result<()>;
        SetOwner [&self.name]: fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;
        SetModified [&self.name]: fn set_modified(&self, time: Timestamp) -> io::Result<()>;
        FileXattrs [&self.name]: fn xattrs(&self) -> io::Result<Vec<Xattr>>;
        SetXattr [&self.name]: fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()>;
        RemoveXattr [&self.name]: fn remove_xattr(&self, name: &OsStr) -> io::Result<()>;
        DropCache [&self.name]: fn drop_cache(&self) -> io::Result<bool>;
        WaitForLock [&self.name]: fn wait_for_lock(&self, lock: Lock) -> io::Result<()>;
        HideFromForks [&self.name]: fn hide_from_forks(&self) -> io::Result<()>;
        TryLock [&self.name]: fn try_lock(&self, lock: Lock) -> io::Result<bool>;
        Unlock [&self.name]: fn unlock(&self) -> io::Result<()>;
    }

    judged_syncs! {
        SyncData: fn sync_data;
        SyncAll: fn sync_all;
    }

    fn reflink_from(&self, source: &dyn File) -> bool {
        self.inner.reflink_from(unwrapped_file(source))
    }

    fn read_ahead(&self) {
        self.inner.read_ahead();
    }

    fn start_write_back(&self, offset: u64, bytes: u64) {
        self.inner.start_write_back(offset, bytes);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Map for FaultyMap {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn read(&self, range: Range<usize>) -> io::Result<Cow<'_, [u8]>> {
        self.judge.check(Verb::ReadMap, Some(&self.name), None)?;
        self.inner.read(range)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sim::Sim;
    use crate::sim::errno::{EIO, ENOSPC};

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    /// Every verb once, in an order in which all succeed, with what came of it.
    fn exercise(vfs: &dyn Vfs, dir: &dyn Dir, file: &dyn File, map: &dyn Map) -> Vec<(Verb, io::Result<()>)> {
        let command = Command { variable: "A=b".into(), leader: None, group: None };
        vec![
            (Verb::OpenRoot, vfs.open_root(Path::new("/")).map(drop)),
            (Verb::Random, vfs.random().map(drop)),
            (Verb::Identity, vfs.identity().map(drop)),
            (Verb::Process, vfs.process().map(drop)),
            (Verb::EndCommand, vfs.end_command(&command).map(drop)),
            (Verb::OpenDir, dir.open_dir(Path::new("")).map(drop)),
            (Verb::OpenFile, dir.open_file(name("a"), Access::Read).map(drop)),
            (Verb::CreateFile, dir.create_file(name("new"), 0o600).map(drop)),
            (Verb::CreateDir, dir.create_dir(name("new d"), 0o700)),
            (Verb::CreateSymlink, dir.create_symlink(name("new s"), name("a"))),
            (Verb::ReadLink, dir.read_link(name("s")).map(drop)),
            (Verb::NameMetadata, Dir::metadata(dir, name("a")).map(drop)),
            (Verb::DirMetadata, dir.own_metadata().map(drop)),
            (Verb::List, dir.list().map(drop)),
            (Verb::DirXattrs, dir.xattrs().map(drop)),
            (Verb::SetDirXattr, dir.set_dir_xattr(name("user.new"), b"")),
            (Verb::RemoveDirXattr, dir.remove_dir_xattr(name("user.old"))),
            (Verb::SetDirMode, dir.set_mode(0o755)),
            (Verb::SetDirOwner, dir.set_owner(1, 1)),
            (Verb::SetModeOf, dir.set_mode_of(name("a"), 0o600)),
            (Verb::SetOwnerOf, dir.set_owner_of(name("a"), 1, 1)),
            (Verb::Rename, dir.rename(name("r1"), dir, name("r2"))),
            (Verb::RenameOver, dir.rename_over(name("o1"), dir, name("o2"))),
            (Verb::Exchange, dir.exchange(name("e1"), dir, name("e2"))),
            (Verb::CheckWritable, dir.check_writable()),
            (Verb::Flags, dir.flags().map(drop)),
            (Verb::CheckRemovable, dir.check_removable(name("a"))),
            (Verb::AvailableInodes, dir.available_inodes().map(drop)),
            (Verb::Link, dir.link(name("a"), dir, name("linked"))),
            (Verb::RemoveFile, dir.remove_file(name("gone"))),
            (Verb::RemoveDir, dir.remove_dir(name("d"))),
            (Verb::SyncDir, dir.sync()),
            (Verb::SyncFilesystem, dir.sync_filesystem()),
            (Verb::FileSystem, dir.file_system().map(drop)),
            (Verb::ReadAt, file.read_at(&mut [0], 0).map(drop)),
            (Verb::WriteAt, file.write_at(&[IoSlice::new(b"x")], 0)),
            (Verb::SetLen, file.set_len(3)),
            (Verb::Allocate, file.allocate(3)),
            (Verb::NextHole, file.next_hole(0).map(drop)),
            (Verb::SyncData, file.sync_data()),
            (Verb::SyncAll, file.sync_all()),
            (Verb::FileMetadata, file.metadata().map(drop)),
            (Verb::SetMode, file.set_mode(0o600)),
            (Verb::SetOwner, file.set_owner(1, 1)),
            (Verb::SetModified, file.set_modified(Timestamp(1))),
            (Verb::FileXattrs, file.xattrs().map(drop)),
            (Verb::SetXattr, file.set_xattr(name("user.new"), b"")),
            (Verb::RemoveXattr, file.remove_xattr(name("user.old"))),
            (Verb::CopyFrom, file.copy_from(file).map(drop)),
            (Verb::DropCache, file.drop_cache().map(drop)),
            (Verb::WaitForLock, file.wait_for_lock(Lock::Shared)),
            (Verb::TryLock, file.try_lock(Lock::Shared).map(drop)),
            (Verb::Unlock, file.unlock()),
            (Verb::HideFromForks, file.hide_from_forks()),
            (Verb::Map, file.map().map(drop)),
            (Verb::ReadMap, map.read(0..1).map(drop)),
        ]
    }

    fn prepared() -> Sim {
        let sim = Sim::new(1);
        for file in ["a", "r1", "o1", "o2", "e1", "e2", "gone"] {
            sim.write_file(file, b"content");
        }
        sim.create_dir("d");
        sim.create_symlink("s", "a");
        sim.set_xattr("a", "user.old", b"");
        sim.set_xattr("/", "user.old", b"");
        sim
    }

    fn opened(faults: &Faults) -> (Arc<dyn Dir>, Arc<dyn File>, Arc<dyn Map>) {
        let dir = faults.open_root(Path::new("/")).unwrap();
        let file = dir.open_file(name("a"), Access::ReadWrite).unwrap();
        let map = file.map().unwrap();
        (dir, file, map)
    }

    fn error_number<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    /// Goal: no method that can fail is forgotten. Method: those of the traits, as their source has them, are compared
    /// with those that verbs stand for.
    #[test]
    fn every_method_that_can_fail_has_a_verb() {
        let mut methods = BTreeSet::new();
        for declared in include_str!("lib.rs").split("\npub trait ").skip(1) {
            let name = declared.split(':').next().unwrap();
            let body = declared.split("\n}").next().unwrap();
            let signatures = body.split("    fn ").skip(1).map(|rest| rest.split_once(['{', ';']).unwrap().0);
            let fallible = signatures.filter(|signature| signature.contains("Result<"));
            methods.extend(fallible.map(|signature| (name, signature.split('(').next().unwrap())));
        }
        assert_eq!(methods, Verb::ALL.iter().map(|verb| verb.method()).collect());
        assert!(methods.contains(&("Map", "read")) && methods.contains(&("Vfs", "open_root")));
    }

    /// Each verb is put before the rule under its own name, and only it fails when it is told to. What
    /// fails is not made: the operations that reach the inner file system are one fewer, if the verb is one.
    #[test]
    fn each_verb_can_be_failed_alone() {
        let all = prepared();
        let faults = Faults::new(Arc::new(all.clone()), fail_nothing());
        let (dir, file, map) = opened(&faults);
        exercise(&faults, &*dir, &*file, &*map);
        let mut operations = 0;
        for failing in Verb::ALL {
            let sim = prepared();
            let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
            let (dir, file, map) = opened(&faults);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (seen_by_rule, failing) = (Arc::clone(&seen), *failing);
            faults.set_rule(Arc::new(move |call| {
                seen_by_rule.lock().push(call.verb);
                (call.verb == failing).then_some(Fault::Error(EIO))
            }));
            let results = exercise(&faults, &*dir, &*file, &*map);
            for (verb, result) in &results {
                let number = result.as_ref().err().map(|error| error.raw_os_error().unwrap());
                assert_eq!(number, (*verb == failing).then_some(EIO), "{verb:?} when {failing:?} fails");
            }
            assert_eq!(results.iter().map(|(verb, _)| *verb).collect::<Vec<_>>(), *seen.lock());
            assert_eq!(seen.lock().iter().collect::<BTreeSet<_>>(), Verb::ALL.iter().collect());
            operations += all.operations() - sim.operations();
        }
        assert_eq!(operations, all.operations(), "each operation was left out once");
    }

    #[test]
    fn rules_count_calls_and_see_names() {
        let faults = Faults::new(Arc::new(prepared()), fail_nth(3, EIO));
        let dir = faults.open_root(Path::new("/")).unwrap();
        dir.list().unwrap();
        assert_eq!(error_number(dir.list()), Some(EIO));
        dir.list().unwrap();
        assert_eq!(faults.calls(), 4);
        faults.set_rule(fail_from(6, ENOSPC));
        dir.list().unwrap();
        assert_eq!(error_number(dir.list()), Some(ENOSPC));
        assert_eq!(error_number(faults.random()), Some(ENOSPC));

        faults.set_rule(fail_verb(Verb::Rename, EIO));
        assert_eq!(error_number(dir.rename(name("a"), &*dir, name("b"))), Some(EIO));
        faults.set_rule(Arc::new(|call| {
            (call.name.as_deref() == Some(name("a")) && call.other.as_deref() == Some(name("b")))
                .then_some(Fault::Error(EIO))
        }));
        assert_eq!(error_number(dir.rename(name("a"), &*dir, name("b"))), Some(EIO));
        dir.rename(name("a"), &*dir, name("c")).unwrap();
    }

    #[test]
    fn a_failed_sync_can_lose_what_it_should_have_kept() {
        for verb in Verb::ALL.iter().copied().filter(|verb| verb.is_sync()) {
            let sim = prepared();
            // Two layers, because wrappers compose.
            let inner = Faults::new(Arc::new(sim.clone()), fail_nothing());
            let faults = Faults::new(Arc::new(inner), fail_nothing());
            let (dir, file, _map) = opened(&faults);
            file.write_at(&[IoSlice::new(b"changed")], 0).unwrap();
            dir.rename(name("r1"), &*dir, name("r2")).unwrap();
            faults.set_rule(Arc::new(move |call| (call.verb == verb).then_some(Fault::LoseData(EIO))));
            let sync = || match verb {
                Verb::SyncDir => dir.sync(),
                Verb::SyncFilesystem => dir.sync_filesystem(),
                Verb::SyncData => file.sync_data(),
                _ => file.sync_all(),
            };
            assert_eq!(error_number(sync()), Some(EIO));
            faults.set_rule(fail_nothing());
            sync().unwrap();
            assert_eq!(sim.read_file("a").unwrap(), b"changed", "reads still show it");
            let cuts: Vec<Sim> = (0..100).map(|seed| sim.power_cut(seed)).collect();
            if verb != Verb::SyncDir {
                assert!(cuts.iter().all(|sim| sim.read_file("a").unwrap() == b"content"), "{verb:?}");
            }
            assert!(cuts.iter().any(|sim| sim.read_file("r1").is_some()), "{verb:?}");
        }
    }

    #[test]
    fn a_short_write_leaves_its_beginning() {
        let sim = prepared();
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let (_dir, file, _map) = opened(&faults);
        faults.set_rule(Arc::new(|_| Some(Fault::ShortWrite(5))));
        let parts = [IoSlice::new(b"abc"), IoSlice::new(b"defg")];
        assert_eq!(error_number(file.write_at(&parts, 0)), Some(ENOSPC));
        assert_eq!(sim.read_file("a").unwrap(), b"abcdent");
        faults.set_rule(Arc::new(|_| Some(Fault::ShortWrite(500))));
        assert_eq!(error_number(file.write_at(&parts, 0)), Some(ENOSPC));
        assert_eq!(sim.read_file("a").unwrap(), b"abcdeft", "what wrote everything does not fail");
        assert_eq!(error_number(file.set_len(0)), Some(ENOSPC));
    }

    #[test]
    fn wrapped_arguments_are_unwrapped() {
        let faults = Faults::new(Arc::new(prepared()), fail_nothing());
        let (dir, file, _map) = opened(&faults);
        let below = dir.open_dir(Path::new("d")).unwrap();
        dir.rename(name("r1"), &*below, name("r")).unwrap();
        below.exchange(name("r"), &*dir, name("e1")).unwrap();
        let copy = below.create_file(name("copy"), 0o600).unwrap();
        assert_eq!(copy.copy_from(&*file).unwrap(), 7);
        assert!(Sim::lose_unsynced_data(&*copy));
    }
}
