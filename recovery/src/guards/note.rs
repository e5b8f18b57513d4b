//! A note of who a process is, in a few lines of text, and of the control group that was made for it.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use atomtree_vfs::{File, ProcessIdentity};

/// A note is a few short lines.
const NOTE_BYTES_MAX: u64 = 8192;

/// Writes the note into an empty file. Nothing is synced: what it says is about this boot.
pub(super) fn write(file: &dyn File, process: &ProcessIdentity) -> io::Result<()> {
    write_with_group(file, process, None)
}

/// The same, with the control group.
pub(super) fn write_with_group(
    file: &dyn File,
    process: &ProcessIdentity,
    group: Option<&Path>,
) -> io::Result<()> {
    let text = to_text(process, group);
    file.write_at(&[IoSlice::new(text.as_bytes())], 0)
}

/// The note's text.
pub fn to_text(process: &ProcessIdentity, group: Option<&Path>) -> String {
    let ProcessIdentity { pid, started, boot, program } = process;
    let program = program.replace('\n', " ");
    // One with a name that can't be written down would only be a second way to find what it holds.
    let group = group.and_then(Path::to_str).filter(|group| !group.contains('\n'));
    let group = group.map(|group| format!("group {group}\n")).unwrap_or_default();
    format!("pid {pid}\nstarted {started}\nboot {boot}\nprogram {program}\n{group}")
}

/// Who it is; `None` if there is no note, or none that can be read.
pub(super) fn read(file: &dyn File) -> Option<ProcessIdentity> {
    from_text(&text_of(file)?)
}

/// The control group.
pub(super) fn read_group(file: &dyn File) -> Option<PathBuf> {
    group_from_text(&text_of(file)?)
}

/// The control group, by the note's text.
pub fn group_from_text(text: &str) -> Option<PathBuf> {
    let group = field(text, "group").map(PathBuf::from)?;
    group.is_absolute().then_some(group)
}

fn text_of(file: &dyn File) -> Option<String> {
    String::from_utf8(file.read_all(NOTE_BYTES_MAX).ok()?).ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    // Not `lines`: a program's name may end in a carriage return.
    text.split('\n').find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// Who it is, by the note's text.
pub fn from_text(text: &str) -> Option<ProcessIdentity> {
    Some(ProcessIdentity {
        pid: field(text, "pid")?.parse().ok()?,
        started: field(text, "started")?.parse().ok()?,
        boot: field(text, "boot")?.to_owned(),
        program: field(text, "program")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back() {
        let boot = "0f".to_owned();
        let process = ProcessIdentity { pid: 7, started: 8, boot, program: "a b\ngroup /x".into() };
        let text = to_text(&process, Some(Path::new("/sys/fs/cgroup/a b")));
        let expected = ProcessIdentity { program: "a b group /x".into(), ..process.clone() };
        assert_eq!(from_text(&text), Some(expected));
        assert_eq!(field(&text, "group"), Some("/sys/fs/cgroup/a b"));
        assert_eq!(from_text("pid x\n"), None);
        assert_eq!(field(&to_text(&process, None), "group"), None);
    }

    #[test]
    fn a_name_that_ends_in_a_return_reads_back() {
        let process = ProcessIdentity { pid: 7, started: 8, boot: "0f".into(), program: "a\r".into() };
        let group = Path::new("/sys/fs/cgroup/a\r");
        let text = to_text(&process, Some(group));
        assert_eq!(from_text(&text), Some(process));
        assert_eq!(group_from_text(&text).as_deref(), Some(group));
    }
}
