//! The operating system's storage, at one chosen operation of which something happens to this process.
//!
//! Operations are those that change or sync something. They are counted for each phase of the process's work and each
//! verb, so that whoever chooses can see to it that all of them have their turn. What happens, happens before the
//! operation is done.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use atomtree::vfs::Vfs;
use atomtree::vfs::faults::{Call, Faults, Verb, fail_nothing};
use atomtree::vfs::os::Os;

/// How often each operation was about to be done, by phase and verb.
pub type Counts = BTreeMap<(String, String), u64>;

/// Operation number `number` of a phase; of one verb or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// In which part of the process's work.
    pub phase: String,
    /// Which operations are counted, by the name of their verb; all if none is said.
    pub verb: Option<String>,
    /// From 1 on.
    pub number: u64,
}

/// The targets in a text as [`list`] writes it; none in an empty one.
///
/// # Errors
/// Why there is none, for people.
pub fn parse_list(text: &str) -> Result<Vec<Target>, String> {
    text.split(',').filter(|part| !part.is_empty()).map(str::parse).collect()
}

/// Targets as one text.
pub fn list(targets: &[Target]) -> String {
    targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.phase, self.verb.as_deref().unwrap_or("any"), self.number)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let &[phase, verb, number] = &parts[..] else {
            return Err(format!("no phase, verb, number: {text}"));
        };
        Ok(Self {
            phase: phase.into(),
            verb: (verb != "any").then(|| verb.into()),
            number: number.parse().map_err(|error| format!("{number}: {error}"))?,
        })
    }
}

/// Whether the verb changes or syncs something.
pub fn is_operation(verb: Verb) -> bool {
    const CHANGES: [Verb; 23] = [
        Verb::CreateFile,
        Verb::CreateDir,
        Verb::CreateSymlink,
        Verb::SetDirMode,
        Verb::SetDirOwner,
        Verb::SetModeOf,
        Verb::SetOwnerOf,
        Verb::Rename,
        Verb::RenameOver,
        Verb::Exchange,
        Verb::Link,
        Verb::RemoveFile,
        Verb::RemoveDir,
        Verb::WriteAt,
        Verb::SetLen,
        Verb::Allocate,
        Verb::SetMode,
        Verb::SetOwner,
        Verb::SetModified,
        Verb::SetXattr,
        Verb::RemoveXattr,
        Verb::CopyFrom,
        Verb::DropCache,
    ];
    verb.is_sync() || CHANGES.contains(&verb)
}

/// What happens at the chosen operation, told which one it is and how often each was done by then.
pub type Event = dyn Fn(&str, &Counts) + Send + Sync;

/// The storage.
#[derive(Clone)]
pub struct Chosen {
    faults: Faults,
    state: Arc<Mutex<State>>,
}

struct State {
    phase: String,
    counts: Counts,
    in_phase: BTreeMap<String, u64>,
    targets: Vec<Target>,
}

impl State {
    /// Counts the operation; whether it is a chosen one.
    fn count(&mut self, verb: &str) -> bool {
        let in_phase = self.in_phase.entry(self.phase.clone()).or_default();
        *in_phase += 1;
        let of_verb = self.counts.entry((self.phase.clone(), verb.to_owned())).or_default();
        *of_verb += 1;
        self.targets.iter().any(|target| {
            let number = match &target.verb {
                None => *in_phase,
                Some(chosen) if chosen == verb => *of_verb,
                Some(_) => return false,
            };
            target.phase == self.phase && number == target.number
        })
    }
}

impl Chosen {
    /// Lets `event` happen at each of the `targets` that is reached.
    pub fn new(targets: Vec<Target>, event: Box<Event>) -> Self {
        let (counts, in_phase) = (Counts::new(), BTreeMap::new());
        let state = State { phase: String::new(), counts, in_phase, targets };
        let state = Arc::new(Mutex::new(state));
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        let counted = Arc::clone(&state);
        faults.set_rule(Arc::new(move |call: &Call| {
            if !is_operation(call.verb) {
                return None;
            }
            let verb = format!("{:?}", call.verb);
            let mut state = counted.lock().expect("nothing panics while it is held");
            if state.count(&verb) {
                let (phase, counts) = (state.phase.clone(), state.counts.clone());
                // Others may go on while this thread waits for its end.
                drop(state);
                event(&format!("{phase} {verb} {}", counts[&(phase.clone(), verb.clone())]), &counts);
            }
            None
        }));
        Self { faults, state }
    }

    /// For [`atomtree::Options::vfs`].
    pub fn vfs(&self) -> Arc<dyn Vfs> {
        Arc::new(self.faults.clone())
    }

    /// From here on operations belong to this phase.
    pub fn enter(&self, phase: &str) {
        phase.clone_into(&mut self.state.lock().expect("nothing panics while it is held").phase);
    }

    /// How often each operation was about to be done.
    pub fn counts(&self) -> Counts {
        self.state.lock().expect("nothing panics while it is held").counts.clone()
    }
}
