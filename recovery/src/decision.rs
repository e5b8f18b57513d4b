//! What recovery does with one name: a table from what it found, what the goal is and what proves the apply, to one
//! action. No I/O; the table stands in DESIGN.md, and a test holds the two together.

/// What stands at the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// Exactly the goal: the content, or a directory where one is wanted.
    Goal,
    /// A content that some unsettled transaction logged, at any name, before or after.
    Ours,
    /// What a power cut may have left of one of those.
    Torn,
    /// Anything else, of any kind.
    Foreign,
}

/// What shall stand at the name: the after-image of the last accepted transaction that touches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Nothing.
    Nothing,
    /// A file whose content is at hand, or a symlink.
    File,
    /// A file whose content is nowhere: it travelled outside the log, and another program destroyed the only inode.
    LostFile,
    /// A directory.
    Directory,
    /// An inode that was moved here, and whose place is known.
    Moved,
    /// An inode that was moved here, and that another program has moved away or removed since.
    LostMove,
    /// Whatever stands there, with other permission bits.
    Same,
}

/// Whether the last transaction's change of this name is known to have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its slot holds exactly the original; or there was no original, and an `applied` record covers it.
    Applied,
    /// Nothing says so.
    Unproven,
}

/// What recovery does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the goal stands, durably.
    Keep,
    /// Put the goal at the empty name.
    Put,
    /// Exchange the goal with what stands there; what comes out is ours, or goes to quarantine.
    Replace,
    /// Move what stands there into recovery's own directory; it is ours, or goes to quarantine.
    TakeOut,
    /// Make the directory.
    MakeDirectory,
    /// Move what stands there out of the way as for `TakeOut`, then make the directory.
    ReplaceByDirectory,
    /// Leave the later edit where it is, keep our content in quarantine, report it.
    Supersede,
    /// Leave the name as it is and report that its content is lost.
    Leave,
}

/// The table.
#[expect(clippy::match_same_arms, reason = "a line of the table each, in the order of the document")]
pub fn decide(goal: Goal, found: Found, proof: Proof) -> Action {
    match (goal, found, proof) {
        (Goal::Nothing, Found::Absent | Found::Goal, _) => Action::Keep,
        (Goal::Nothing, Found::Ours | Found::Torn, _) => Action::TakeOut,
        (Goal::Nothing, Found::Foreign, Proof::Unproven) => Action::TakeOut,
        (Goal::File | Goal::Directory, Found::Goal, _) => Action::Keep,
        (Goal::File, Found::Absent, _) => Action::Put,
        (Goal::File, Found::Ours | Found::Torn, _) => Action::Replace,
        (Goal::File, Found::Foreign, Proof::Unproven) => Action::Replace,
        (Goal::File | Goal::Nothing, Found::Foreign, Proof::Applied) => Action::Supersede,
        (Goal::Directory, Found::Absent, _) => Action::MakeDirectory,
        // A directory may be needed by what the same transaction put into it, so an obstacle always gives way.
        (Goal::Directory, Found::Ours | Found::Torn | Found::Foreign, _) => Action::ReplaceByDirectory,
        // Where the inode is proves what was applied: it is not here.
        (Goal::Moved, Found::Goal, _) => Action::Keep,
        (Goal::Moved, Found::Absent, _) => Action::Put,
        (Goal::Moved, Found::Ours | Found::Torn | Found::Foreign, _) => Action::Replace,
        (Goal::Same, _, _) => Action::Keep,
        (Goal::LostFile | Goal::LostMove, _, _) => Action::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the table in DESIGN.md is the one in the code. Method: every combination is looked up in the document,
    /// where it stands on exactly one line.
    #[test]
    fn the_table_in_the_design_document_is_this_one() {
        let design = include_str!("../../DESIGN.md");
        let rows: Vec<Vec<&str>> = design
            .lines()
            .skip_while(|line| *line != "<!-- decision table -->")
            .skip(3)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        assert!(!rows.is_empty(), "DESIGN.md has no decision table");
        let mut used = vec![0; rows.len()];
        let goals = [
            Goal::Nothing,
            Goal::File,
            Goal::LostFile,
            Goal::Directory,
            Goal::Moved,
            Goal::LostMove,
            Goal::Same,
        ];
        for goal in goals {
            for found in [Found::Absent, Found::Goal, Found::Ours, Found::Torn, Found::Foreign] {
                for proof in [Proof::Applied, Proof::Unproven] {
                    let names = [format!("{goal:?}"), format!("{found:?}"), format!("{proof:?}")];
                    let matching: Vec<usize> = (0..rows.len())
                        .filter(|&row| {
                            (0..3).all(|column| {
                                rows[row][column] == "any"
                                    || rows[row][column].split(", ").any(|name| name == names[column])
                            })
                        })
                        .collect();
                    assert_eq!(matching.len(), 1, "{names:?} stands on {} lines", matching.len());
                    used[matching[0]] += 1;
                    assert_eq!(
                        rows[matching[0]][3],
                        format!("{:?}", decide(goal, found, proof)),
                        "{names:?}"
                    );
                }
            }
        }
        assert!(used.iter().all(|&count| count > 0), "a line of the table decides nothing");
    }
}
