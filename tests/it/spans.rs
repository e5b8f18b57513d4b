//! The feature `tracing`: the spans of opening and of one commit, what they say, and which stand in which.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::basics::{child, child_root, commit, kind_of, manual};

/// Writes down what it is told: a line for each span's beginning and end, and for each event.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    lines: Vec<String>,
    spans: BTreeMap<u64, &'static str>,
    depth: usize,
}

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().lines)
    }
}

/// The fields of a span or event, in their order, but for those that differ from run to run.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !["root", "used_bytes"].contains(&field.name()) {
            self.0 += &format!(" {}={value:?}", field.name());
        }
    }
}

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("atomtree")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        let mut taken = self.0.lock().unwrap();
        let line = format!("{}{}{}", "  ".repeat(taken.depth), span.metadata().name(), fields.0);
        taken.lines.push(line);
        let id = taken.spans.len() as u64 + 1;
        taken.spans.insert(id, span.metadata().name());
        Id::from_u64(id)
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut taken = self.0.lock().unwrap();
        let line = format!("{}{}:{}", "  ".repeat(taken.depth), event.metadata().level(), fields.0);
        taken.lines.push(line);
    }

    fn enter(&self, _: &Id) {
        self.0.lock().unwrap().depth += 1;
    }

    fn exit(&self, _: &Id) {
        self.0.lock().unwrap().depth -= 1;
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}
}

/// Goal: one commit's spans are there, in their order, within each other, with label, agent and number of names; a
/// conflict is an event; so are the spans of opening, recovering and checkpoints. Method: a subscriber of this thread
/// alone that writes everything down; without a thread that checkpoints, this one does it all. In a process of its own,
/// since `tracing` loses a span now and then that another thread opens for the first time in the same moment.
#[test]
fn a_commit_tells_what_it_does() {
    if child_root().is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let run = child("spans::a_commit_tells_what_it_does", scratch.path()).output().unwrap();
        assert!(run.status.success(), "{}{}", text(&run.stdout), text(&run.stderr));
        return;
    }
    commit_and_listen();
    recover_and_listen();
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn commit_and_listen() {
    let scratch = tempfile::tempdir().unwrap();
    let notes = Notes::default();
    tracing::subscriber::with_default(notes.clone(), || {
        let store = manual().open(scratch.path()).unwrap();
        assert_eq!(notes.take()[0], "atomtree.open");
        commit(&store, |tx| {
            tx.set_label("go live");
            tx.set_agent("tests");
            tx.write("config", "1")?;
            tx.write("dir/schema", "2")
        })
        .unwrap();
        assert_eq!(
            notes.take(),
            [
                "atomtree.commit label=\"go live\" agent=\"tests\" names=3",
                "  atomtree.stage",
                "  atomtree.sync transactions=1",
                "  atomtree.apply transactions=1",
            ]
        );
        store.checkpoint().unwrap();
        assert_eq!(notes.take(), ["atomtree.checkpoint transactions=1"]);

        let mut late = store.begin().unwrap();
        late.write("config", "late").unwrap();
        commit(&store, |tx| tx.write("config", "early")).unwrap();
        notes.take();
        assert_eq!(kind_of(late.commit()), atomtree::ErrorKind::Conflict);
        let lines = notes.take();
        assert_eq!(lines[0], "atomtree.commit names=1");
        assert!(
            lines.iter().any(|line| line.starts_with("  DEBUG: message=conflict path=\"config\" reason=")),
            "{lines:#?}"
        );
    });
}

/// An unclean end makes the next open recover, and say so; a submitted transaction says what its caller does.
fn recover_and_listen() {
    let scratch = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = manual().open(scratch.path()).unwrap();
    let notes = Notes::default();
    tracing::subscriber::with_default(notes.clone(), || {
        let mut tx = store.begin().unwrap();
        tx.write("a", "1").unwrap();
        tx.submit().unwrap().applied().unwrap();
        assert_eq!(notes.take(), ["atomtree.submit names=1", "  atomtree.stage"]);
        let status = std::process::Command::new("cp")
            .args(["-a", "--"])
            .arg(scratch.path().join("."))
            .arg(copy.path())
            .status();
        assert!(status.unwrap().success());
        drop(manual().adopt(true).open(copy.path()).unwrap());
        let lines = notes.take();
        assert_eq!(lines[..2], ["atomtree.open", "  atomtree.recovery"], "{lines:#?}");
    });
    store.close().unwrap();
}
