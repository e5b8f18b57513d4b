//! `recover` and `checkpoint`: what is done to a store, not through it.
//!
//! Both are run by scripts and at boot over roots that may have no store yet. There is nothing to do then, and they
//! say so and make none.

use std::path::Path;

use atomtree::Options;
use serde::Serialize;

use crate::answer::{Failure, Kept, json, print};
use crate::arguments::Common;
use crate::path::JsonPath;
use crate::progress::Progress;
use crate::store_flags::StoreFlags;
use crate::text::{counted, printable};

/// Runs `atomtree recover`.
pub(crate) fn recover(common: &Common, flags: &StoreFlags) -> Result<u8, Failure> {
    let report = if common.has_store() {
        let _progress = Progress::of("recovering the store");
        Recovered::by_opening(flags.set_on(common.options()), &common.root)?
    } else {
        common.check_root()?;
        Recovered::new(&atomtree::RecoveryReport::default())
    };
    if common.json {
        print(&json(&report))?;
    } else if common.has_store() {
        print(&report.told())?;
    } else {
        print(&format!("no store in {}: nothing to recover", printable(&common.root.to_string_lossy())))?;
    }
    Ok(0)
}

/// Runs `atomtree checkpoint`.
pub(crate) fn checkpoint(common: &Common, flags: &StoreFlags) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Settled {
        ok: bool,
    }
    let said = if common.has_store() {
        let _progress = Progress::of("settling what was committed");
        let store = flags.open(common)?;
        store.checkpoint()?;
        store.close()?;
        "everything committed is durable in place".to_owned()
    } else {
        common.check_root()?;
        format!("no store in {}: nothing to settle", printable(&common.root.to_string_lossy()))
    };
    print(&if common.json { json(&Settled { ok: true }) } else { said })?;
    Ok(0)
}

/// What recovery did, as the contract spells it.
#[derive(Serialize)]
pub(crate) struct Recovered {
    ok: bool,
    redone: u64,
    rolled_back: u64,
    voided: u64,
    superseded: Vec<Superseded>,
    quarantined: Vec<Kept>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost: Vec<JsonPath>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metadata_kept: Vec<JsonPath>,
}

#[derive(Serialize)]
struct Superseded {
    path: JsonPath,
    tx: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

impl Recovered {
    /// Recovers the store at `root` by opening it.
    pub(crate) fn by_opening(options: Options, root: &Path) -> Result<Self, Failure> {
        let store = options.open(root)?;
        let report = Self::new(store.recovery());
        store.close()?;
        Ok(report)
    }

    /// What is told of it where nobody asked for it: what was moved, left as it is, or lost.
    pub(crate) fn notable(report: &atomtree::RecoveryReport) -> Vec<String> {
        Self::new(report).told().lines().skip(1).map(str::to_owned).collect()
    }

    fn new(report: &atomtree::RecoveryReport) -> Self {
        let paths = |paths: &[atomtree::TreePath]| {
            paths.iter().map(|path| JsonPath::from(path.as_path())).collect::<Vec<_>>()
        };
        let superseded = |one: &atomtree::Superseded| Superseded {
            path: JsonPath::from(one.path.as_path()),
            tx: one.tx.0,
            kept: one.kept.clone(),
        };
        Self {
            ok: true,
            redone: report.redone,
            rolled_back: report.rolled_back,
            voided: report.voided,
            superseded: report.superseded.iter().map(superseded).collect(),
            quarantined: Kept::all(&report.quarantined),
            lost: paths(&report.lost),
            metadata_kept: paths(&report.metadata_kept),
        }
    }

    /// What people are told.
    pub(crate) fn told(&self) -> String {
        let name = |path: &JsonPath| printable(&path.0.to_string_lossy());
        let mut lines = vec![match (self.redone, self.voided, self.rolled_back) {
            (0, 0, 0) => "nothing to recover".to_owned(),
            (redone, voided, rolled_back) => format!(
                "{} finished, {voided} that never committed dropped, {} rolled back",
                counted(redone, "transaction"),
                counted(rolled_back, "guard")
            ),
        }];
        for Superseded { path, tx, kept } in &self.superseded {
            let kept = kept
                .as_ref()
                .map(|kept| format!("; the content of transaction {tx} is in .atomtree/{}", printable(kept)));
            let kept = kept.unwrap_or_default();
            lines.push(format!("{}: a later edit by another program stays{kept}", name(path)));
        }
        for Kept { path, kept } in &self.quarantined {
            let kept = printable(kept);
            lines.push(format!(
                "{}: another program's content gave way, and is in .atomtree/{kept}",
                name(path)
            ));
        }
        for path in &self.lost {
            let lost = "another program destroyed the only copy of its content; it is left as it was found";
            lines.push(format!("{}: {lost}", name(path)));
        }
        for path in &self.metadata_kept {
            lines.push(format!("{}: its mode, owner or attributes were changed since, and stay", name(path)));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_is_spelled_as_in_the_contract() {
        let path = |name: &str| JsonPath::from(Path::new(name));
        let superseded =
            |kept: Option<&str>| Superseded { path: path("a"), tx: 11, kept: kept.map(str::to_owned) };
        let mut report = Recovered {
            superseded: vec![superseded(Some("quarantine/1")), superseded(None)],
            quarantined: vec![Kept { path: path("b"), kept: "quarantine/2".into() }],
            ..Recovered::new(&atomtree::RecoveryReport { redone: 2, voided: 1, ..Default::default() })
        };
        let begin = r#"{"ok":true,"redone":2,"rolled_back":0,"voided":1,"superseded":[{"path":"a","tx":11,"kept":"quarantine/1"},{"path":"a","tx":11}],"quarantined":[{"path":"b","kept":"quarantine/2"}]"#;
        assert_eq!(json(&report), format!("{begin}}}"));
        report.lost.push(path("c"));
        report.metadata_kept.push(path("d"));
        assert_eq!(json(&report), format!(r#"{begin},"lost":["c"],"metadata_kept":["d"]}}"#));
        assert_eq!(report.told().lines().count(), 6);
    }
}
