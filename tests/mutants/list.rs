//! The mutants: what each breaks, and the test that has to notice.

/// A way to break the engine.
pub struct Mutant {
    pub name: &'static str,
    pub edits: &'static [Edit],
    /// The test that fails then.
    pub suite: Suite,
}

/// What stands once in a file, and what it is replaced by.
pub struct Edit {
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

/// Where a test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// An integration test.
    It(&'static str),
    /// A test of a package: the package, the target, the test.
    In(&'static str, &'static str, &'static str),
    /// A loom model of a package.
    Loom(&'static str, &'static str),
}

impl Suite {
    /// The test's path in its crate.
    pub fn test(self) -> &'static str {
        match self {
            Self::It(test) | Self::In(_, _, test) | Self::Loom(_, test) => test,
        }
    }
}

pub const MUTANTS: &[Mutant] = &[
    // Acknowledge what only the cache has.
    Mutant {
        name: "skip-the-log-sync",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "wal/src/log.rs",
            from: "if let Err(source) = self.active.file.sync_data() {",
            to: "if let Err(source) = std::io::Result::Ok(()) {",
        }],
    },
    // Settle names and contents that only the cache has.
    Mutant {
        name: "skip-the-sync-of-a-checkpoint",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "engine/src/settle.rs",
            from: "let sync = || root.sync_filesystem();",
            to: "let sync = || { let _ = root; Ok(()) };",
        }],
    },
    // Let nobody have another segment for as long as the file system is synced.
    Mutant {
        name: "add-no-segment-while-syncing",
        suite: Suite::It("upkeep::commits_go_on_while_a_checkpoint_syncs"),
        edits: &[Edit { file: "engine/src/settle.rs", from: "self.add_wanted_spare(turn, false);", to: "" }],
    },
    // Say of all transactions that they are settled when the originals of a portion are moved.
    Mutant {
        name: "settle-more-than-a-portion",
        suite: Suite::It("upkeep::a_checkpoint_in_portions_is_cut_short_anywhere"),
        edits: &[Edit {
            file: "engine/src/settle.rs",
            from: "Ok(commits) => self.record(commits, transactions)?,",
            to: "Ok(commits) => self.record(commits, &backlog.transactions)?,",
        }],
    },
    // Take manifests of others for there when they are not known.
    Mutant {
        name: "follow-behind-another-process",
        suite: Suite::It("forgetting::a_checkpoint_lists_the_history_only_behind_anothers"),
        edits: &[Edit {
            file: "recovery/src/retention.rs",
            from: "newest.0.checked_add(1) == Some(first.0)",
            to: "newest.0 < first.0",
        }],
    },
    // Miss what a scrub has written anew.
    Mutant {
        name: "follow-behind-a-scrub",
        suite: Suite::It("forgetting::a_checkpoint_lists_the_history_only_behind_anothers"),
        edits: &[Edit {
            file: "recovery/src/retention.rs",
            from: "            shelves.forget();",
            to: "            shelves.0.remove(&name);",
        }],
    },
    // Look for an edit only in the piece in which it begins.
    Mutant {
        name: "cut-an-edit-at-its-piece",
        suite: Suite::In("atomtree", "--lib", "content::tests::an_edited_file_has_its_digest"),
        edits: &[Edit {
            file: "engine/src/content.rs",
            from: "for piece in number(edit.0)..=number(edit.0 + edit.1.len() as u64) {",
            to: "for piece in [number(edit.0)] {",
        }],
    },
    // Go on as ever beside those who are met and always come second.
    Mutant {
        name: "forget-that-it-was-met",
        suite: Suite::It("processes::fairness::who_meets_others_gets_its_turn"),
        edits: &[Edit {
            file: "engine/src/store.rs",
            from: "Ok((_, receipt)) if receipt.is_met() => {",
            to: "Ok((_, receipt)) if receipt.is_met() && receipt.tx().0 == 0 => {",
        }],
    },
    Mutant {
        name: "meet-one-name-of-a-listing",
        suite: Suite::In("atomtree", "--lib", "contention::tests::who_is_met_queues"),
        edits: &[Edit {
            file: "engine/src/contention.rs",
            from: "Meeting::at(listed.unwrap_or(path),",
            to: "Meeting::at(listed.map_or(path, |_| path),",
        }],
    },
    // Believe in a segment that has been cut behind what is read.
    Mutant {
        name: "overlook-a-cut-segment",
        suite: Suite::In("atomtree-wal", "--test=log", "several::a_segment_that_was_cut_is_refused"),
        edits: &[Edit {
            file: "wal/src/log.rs",
            from: "let is_all = are_headers_known && self.has_known_lengths()?;",
            to: "let is_all = are_headers_known;",
        }],
    },
    // Look only at the segments that are known.
    Mutant {
        name: "overlook-anothers-segments",
        suite: Suite::In("atomtree-wal", "--test=log", "several::spares_are_known_to_all_and_counted_once"),
        edits: &[Edit {
            file: "wal/src/log.rs",
            from: "let are_headers_known = are_names_known && self.has_known_headers()?;",
            to: "let are_headers_known = self.has_known_headers()?;",
        }],
    },
    // Take what was made and removed again for untouched.
    Mutant {
        name: "forget-what-was-removed-again",
        suite: Suite::It("conflicts::what_was_made_and_removed_again_is_still_absent"),
        edits: &[Edit {
            file: "engine/src/stage.rs",
            from: "entry.is_read || matches!(entry.now, Now::Absent)",
            to: "entry.is_read",
        }],
    },
    // Free the record of an edit whose name in quarantine only the cache has.
    Mutant {
        name: "skip-the-syncs-behind-a-checkpoint",
        suite: Suite::It("crash_points::edits_by_other_programs_are_kept"),
        edits: &[Edit {
            file: "recovery/src/sweep.rs",
            from: r#"        self.0.values().flatten().try_for_each(|dir| dir.sync()).doing("sync", "stage")?;
        places.quarantine.sync().doing("sync", "quarantine")
"#,
            to: r#"        places.quarantine.own_metadata().map(drop).doing("sync", "quarantine")
"#,
        }],
    },
    // Lose what recovery took out of the tree, and the history needs.
    Mutant {
        name: "lose-what-recovery-took-out",
        suite: Suite::It("undo::every_crash_leaves_a_history_that_leads_back"),
        edits: &[Edit {
            file: "recovery/src/sweep.rs",
            from: "            None if self.keeper.keep(self.applier, dir, name, None)? => Ok(()),
",
            to: "",
        }],
    },
    // Leave originals to the log that only the log has.
    Mutant {
        name: "leave-originals-in-the-log",
        suite: Suite::It("undo::every_crash_leaves_a_history_that_leads_back"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from: "        repair.write_originals(&keeper)?;
",
            to: "",
        }],
    },
    // Move a directory to where originals are kept before what is not its own is durably elsewhere.
    Mutant {
        name: "keep-a-stranger-with-a-directory",
        suite: Suite::It("foreign_dirs::edits_of_directories_by_other_programs_are_kept"),
        edits: &[Edit {
            file: "recovery/src/images.rs",
            from: "        places.quarantine.sync()?;
",
            to: "",
        }],
    },
    // Undo what has moved on since.
    Mutant {
        name: "undo-whatever-stands-there",
        suite: Suite::It("undo::what_has_moved_on_is_a_conflict_unless_it_is_forced"),
        edits: &[Edit {
            file: "engine/src/transaction/revert.rs",
            from: "        self.is_forced || self.lets_own && self.own.contains(path)",
            to: "        self.is_forced || self.own.len() < 99 || self.lets_own && self.own.contains(path)",
        }],
    },
    // Use an original without a look at it.
    Mutant {
        name: "trust-an-original",
        suite: Suite::It("undo::a_damaged_original_is_not_used"),
        edits: &[Edit {
            file: "engine/src/content.rs",
            from: "            (Some(digest), Some(name)) if digest != found => Err(is_other(name)),",
            to: "            (Some(_), Some(name)) if self.size > 99 => Err(is_other(name)),",
        }],
    },
    // Let history grow beyond its bound.
    Mutant {
        name: "forget-no-history",
        suite: Suite::It("undo::the_history_keeps_to_each_of_its_bounds"),
        edits: &[Edit {
            file: "recovery/src/retention.rs",
            from: "            if bytes <= retention.bytes_max && left < retention.transactions_max && !is_old {",
            to: "            if left < retention.transactions_max && !is_old {",
        }],
    },
    // Log a reference to a content that only the cache has.
    Mutant {
        name: "skip-the-sync-of-staged-files",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "engine/src/stage.rs",
            from: ".try_for_each(|file| file.sync_all())",
            to: ".try_for_each(|_| Ok(()))",
        }],
    },
    // Log a reference to a file whose name only the cache has.
    Mutant {
        name: "skip-the-sync-of-staged-names",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "engine/src/stage.rs",
            from: ".and_then(|()| self.stage().dir().sync())",
            to: "",
        }],
    },
    // Retire the log over names that only the cache has.
    Mutant {
        name: "skip-the-sync-of-a-recovery",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from: r#"        repair.write_originals(&keeper)?;
        self.places.root.sync_filesystem().doing("sync the file system of", "the root")?;"#,
            to: "        repair.write_originals(&keeper)?;",
        }],
    },
    // Rename before the commit point.
    Mutant {
        name: "apply-before-the-sync",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[
            Edit {
                file: "engine/src/commit.rs",
                from: r#"            trace::span!("atomtree.sync", transactions = logged.len());
            commits.log.sync()
        };"#,
                to: "            self.apply(commits, parents, logged, outcomes);
            commits.log.sync()
        };",
            },
            Edit {
                file: "engine/src/commit.rs",
                from: "        tickets.into_iter().for_each(|(ticket, tx)| ticket.note_durable(tx));
        self.apply(commits, parents, logged, outcomes);",
                to: "        tickets.into_iter().for_each(|(ticket, tx)| ticket.note_durable(tx));",
            },
        ],
    },
    // Free a record before the originals that it explains are compared.
    Mutant {
        name: "retire-a-segment-early",
        suite: Suite::It("crash_points::no_segment_is_freed_before_the_originals_it_explains_are_compared"),
        edits: &[
            Edit {
                file: "engine/src/settle.rs",
                from: "        self.keep_originals(transactions, || self.add_wanted_spare(turn, is_held))?;
",
                to: "",
            },
            Edit {
                file: "engine/src/settle.rs",
                from: "        drop(lock);
        if !transactions.is_empty() {",
                to: "        drop(lock);
        self.keep_originals(transactions, || self.add_wanted_spare(turn, is_held))?;
        if !transactions.is_empty() {",
            },
        ],
    },
    // Free segments so that a crash leaves a hole.
    Mutant {
        name: "retire-the-newest-first",
        suite: Suite::In("atomtree-wal", "--test=log", "crashes::segments_are_freed_without_a_hole"),
        edits: &[
            Edit {
                file: "wal/src/log.rs",
                from: "while self.sealed.front().is_some_and(|(_, last)| *last < below) {",
                to: "while self.sealed.back().is_some_and(|(_, last)| *last < below) {",
            },
            Edit {
                file: "wal/src/log.rs",
                from: r#"let (mut segment, last) = self.sealed.pop_front().expect("there is a front");"#,
                to: r#"let (mut segment, last) = self.sealed.pop_back().expect("there is a back");"#,
            },
        ],
    },
    // Take an edit for ours because it is as long.
    Mutant {
        name: "trust-a-size",
        suite: Suite::It("crash_points::edits_by_other_programs_are_kept"),
        edits: &[Edit {
            file: "recovery/src/known.rs",
            from: "self.digests.contains(&(size, digest))",
            to: "self.digests.iter().any(|known| known.0 == size)",
        }],
    },
    // Replace what another program wrote because it is as long.
    Mutant {
        name: "trust-a-size-in-the-check",
        suite: Suite::It("conflicts::every_edit_after_the_first_look_is_a_conflict"),
        edits: &[Edit {
            file: "engine/src/check.rs",
            from: "Content::Inline(_) | Content::Digest(_) => fresh.has_content_of(seen) == Some(true),",
            to: "Content::Inline(_) | Content::Digest(_) => fresh.size == seen.size,",
        }],
    },
    // Believe in recovery what reads show.
    Mutant {
        name: "trust-the-page-cache",
        suite: Suite::It("crash_points::data_lost_in_the_background_is_written_again"),
        edits: &[Edit {
            file: "recovery/src/recover/ahead.rs",
            from: "let from_disk = file.drop_cache()?;",
            to: "let from_disk = true;",
        }],
    },
    // Believe records that a failed write-back never wrote.
    Mutant {
        name: "trust-the-cached-log",
        suite: Suite::It("crash_points::every_failed_sync_is_final"),
        edits: &[Edit { file: "recovery/src/recover.rs", from: "log.rewrite(scan, doubted)?;", to: "" }],
    },
    // Acknowledge once the device seems healed.
    Mutant {
        name: "go-on-after-a-failed-sync",
        suite: Suite::It("crash_points::every_failed_sync_is_final"),
        edits: &[
            Edit {
                file: "wal/src/log.rs",
                from: r#"            self.poisoned = Some(format!("segment {segment}: {source}"));
            return Err(Error::OutcomeUnknown { segment, source });
        }
        self.is_dirty = false;
        Ok(())
    }

    /// Goes on"#,
                to: "            return Err(Error::OutcomeUnknown { segment, source });
        }
        self.is_dirty = false;
        Ok(())
    }

    /// Goes on",
            },
            Edit {
                file: "engine/src/commit.rs",
                from: "            self.poison(&reason);
            for outcome",
                to: "            for outcome",
            },
        ],
    },
    // Leave a follower waiting that was committed.
    Mutant {
        name: "forget-to-wake-a-follower",
        suite: Suite::Loom("atomtree-wal", "group_commit::models::three_committers"),
        edits: &[Edit {
            file: "wal/src/group_commit.rs",
            from: "        self.settled.notify_one();
",
            to: "",
        }],
    },
    // Leave whoever blocks on a ticket.
    Mutant {
        name: "forget-to-wake-a-ticket",
        suite: Suite::It("tickets::a_failed_sync_wakes_everybody"),
        edits: &[Edit {
            file: "engine/src/ticket.rs",
            from: "        self.news.notify_all();
        if let Some(waker)",
            to: "        if let Some(waker)",
        }],
    },
    // Leave a future that was polled.
    Mutant {
        name: "forget-a-waker",
        suite: Suite::It("tickets::a_future_wakes_the_waker_that_it_was_polled_with_last"),
        edits: &[Edit {
            file: "engine/src/ticket.rs",
            from: "_ => progress.waker.replace(context.waker().clone()),",
            to: "_ => None::<Waker>,",
        }],
    },
    // Let a flipped bit of the epoch or the link pass.
    Mutant {
        name: "leave-the-epoch-out-of-the-checksum",
        suite: Suite::In(
            "atomtree-wal",
            "--lib",
            "format::tests::a_frame_reads_back_and_every_flipped_bit_is_noticed",
        ),
        edits: &[
            Edit {
                file: "wal/src/format.rs",
                from: "hasher.update(&bytes[4..]);
        payload",
                to: "hasher.update(&bytes[4..12]);
        hasher.update(&bytes[24..]);
        payload",
            },
            Edit {
                file: "wal/src/format.rs",
                from: "crc32fast::hash(&frame[4..])",
                to: "crc32fast::hash(&[&frame[4..12], &frame[24..]].concat())",
            },
        ],
    },
    // Take a frame of the segment's former life for the next one.
    Mutant {
        name: "ignore-the-epoch",
        suite: Suite::In("atomtree-wal", "--test=log", "hostile::a_frame_of_a_former_epoch_is_not_accepted"),
        edits: &[Edit {
            file: "wal/src/scan.rs",
            from: "let is_wanted = header.epoch == epoch && lsn.is_none_or(|lsn| header.lsn == lsn);",
            to: "let is_wanted = lsn.is_none_or(|lsn| header.lsn == lsn);",
        }],
    },
    // Take a voided frame for the successor of another.
    Mutant {
        name: "ignore-the-link",
        suite: Suite::In("atomtree-wal", "--test=log", "damage::a_frame_of_another_history_is_not_accepted"),
        edits: &[Edit {
            file: "wal/src/scan.rs",
            from: "if header.link != self.link || header.synced_lsn >= header.lsn {",
            to: "if header.synced_lsn >= header.lsn {",
        }],
    },
    // Append where a voided frame may come back.
    Mutant {
        name: "go-on-in-a-torn-segment",
        suite: Suite::It("crash_points::a_voided_frame_does_not_come_back_behind_the_same_bytes"),
        edits: &[Edit {
            file: "wal/src/log.rs",
            from: "is_torn: scan.tail().is_torn(),",
            to: "is_torn: false,",
        }],
    },
    // Append behind half a run.
    Mutant {
        name: "go-on-after-a-failed-append",
        suite: Suite::In("atomtree-wal", "--test=log", "faults::a_failed_append_is_void_wherever_it_fails"),
        edits: &[Edit {
            file: "wal/src/log.rs",
            from: "                self.is_torn = true;
",
            to: "",
        }],
    },
    // Bring a name to what an earlier transaction wanted.
    Mutant {
        name: "redo-the-first-change-of-a-name",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from: "goals.insert(&change.path, Target { transaction, change, attributes, seen, last });",
            to: "goals.entry(&change.path).or_insert(Target { transaction, change, attributes, seen, last });",
        }],
    },
    // Decide each name once for each transaction, and not for all together.
    Mutant {
        name: "redo-transaction-by-transaction",
        suite: Suite::It("crash_points::edits_by_other_programs_are_kept"),
        edits: &[
            Edit {
                file: "recovery/src/recover.rs",
                from: "        let mut repair = Repair::new(self, &analysis)?;
        repair.all_names()?;",
                to: "        for count in 1..analysis.unsettled().count() {
            Repair::new(self, &analysis, count)?.all_names()?;
        }
        let mut repair = Repair::new(self, &analysis, usize::MAX)?;
        repair.all_names()?;",
            },
            Edit {
                file: "recovery/src/recover.rs",
                from: "fn new(recovery: &'a Recovery<'a>, analysis: &'a Analysis<'a>) -> Result<Self, Error> {",
                to: "fn new(recovery: &'a Recovery<'a>, analysis: &'a Analysis<'a>, count: usize) -> Result<Self, Error> {",
            },
            Edit {
                file: "recovery/src/recover.rs",
                from: "        for transaction in analysis.unsettled() {
            for change in &transaction.changes {
                let before",
                to: "        for transaction in analysis.unsettled().take(count) {
            for change in &transaction.changes {
                let before",
            },
        ],
    },
    // Put the original back.
    Mutant {
        name: "exchange-twice",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "recovery/src/apply.rs",
            from: "return slot_dir.exchange(&slot.os_name(), dir, name);",
            to: "return slot_dir.exchange(&slot.os_name(), dir, name).and_then(|()| slot_dir.exchange(&slot.os_name(), dir, name));",
        }],
    },
    // Replace what was changed since the transaction looked.
    Mutant {
        name: "check-only-at-plan-time",
        suite: Suite::It("conflicts::every_edit_after_the_first_look_is_a_conflict"),
        edits: &[Edit {
            file: "engine/src/commit.rs",
            from: "        self.check(parents, &mut prepared)
            .map_err(",
            to: "        Ok::<(), Error>(())
            .map_err(",
        }],
    },
    // Commit although a directory has got another name.
    Mutant {
        name: "check-no-listings",
        suite: Suite::It("conflicts::directories::answers_still_hold_at_the_commit"),
        edits: &[Edit {
            file: "engine/src/check.rs",
            from: "Read::Listing { path, inode, names } => check_listing(parents, path, *inode, names)?,",
            to: "Read::Listing { .. } => {}",
        }],
    },
    // Unlink an edit that came between the last check and the rename.
    Mutant {
        name: "destroy-what-slipped-in",
        suite: Suite::It("crash_points::edits_by_other_programs_are_kept"),
        edits: &[Edit {
            file: "recovery/src/apply.rs",
            from: "        self.quarantine(&*slot_dir, &slot.os_name(), path)
    }

    /// Moves what stands at `name`",
            to: "        slot_dir.remove_file(&slot.os_name())
    }

    /// Moves what stands at `name`",
        }],
    },
    // Overwrite an edit that is newer than the change.
    Mutant {
        name: "put-back-what-was-superseded",
        suite: Suite::It("crash_points::a_newer_edit_stays_and_an_older_one_gives_way"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from: "Ok(if applied { Proof::Applied } else { Proof::Unproven })",
            to: "Ok(if applied { Proof::Unproven } else { Proof::Unproven })",
        }],
    },
    // Let a component be a symlink.
    Mutant {
        name: "follow-a-symlink",
        suite: Suite::It("errors::symlinks_do_not_lead_out"),
        edits: &[
            Edit {
                file: "vfs/src/os/dir.rs",
                from: "        | ResolveFlags::NO_SYMLINKS
",
                to: "",
            },
            Edit {
                file: "vfs/src/os/dir.rs",
                from: "let confined = ResolveFlags::BENEATH
        |",
                to: "let confined =",
            },
        ],
    },
    // Clear the slots of a process that is still there.
    Mutant {
        name: "sweep-a-living-process",
        suite: Suite::It("upkeep::the_slots_of_a_living_process_are_left_alone"),
        edits: &[Edit {
            file: "recovery/src/sweep.rs",
            from: "Ok(file.try_lock(Lock::Exclusive)?.then_some(file))",
            to: "Ok(file.try_lock(Lock::Exclusive).map(|_| Some(file))?)",
        }],
    },
    // Believe that what stands in a directory that goes is in its place.
    Mutant {
        name: "take-a-path-for-a-place",
        suite: Suite::It("crash_points::what_moves_into_the_successor_of_its_directory_survives"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from: "            at = path.parent();",
            to: "            at = None;",
        }],
    },
    // Commit beside an unsettled move of a directory.
    Mutant {
        name: "let-barriers-overlap",
        suite: Suite::It("foreign_dirs::every_crash_leaves_whole_transactions_on_directories"),
        edits: &[Edit {
            file: "engine/src/commit.rs",
            from: "        is_below_unsettled
            || prepared.is_barrier()",
            to: "        false && is_below_unsettled
            && prepared.is_barrier()",
        }],
    },
    // Patch a file whatever it holds by now.
    Mutant {
        name: "patch-without-comparing",
        suite: Suite::It("in_place::edits_in_the_sectors_are_a_conflict_and_others_are_none"),
        edits: &[Edit {
            file: "engine/src/check.rs",
            from: "        if !is_same {
            let end",
            to: "        if !is_same && patched.size() == 0 {
            let end",
        }],
    },
    // Log a patch of what only the cache has.
    Mutant {
        name: "patch-what-is-not-synced",
        suite: Suite::It("in_place::a_patch_survives_where_what_it_patches_was_never_synced"),
        edits: &[Edit {
            file: "engine/src/stage.rs",
            from: "patched.iter().try_for_each(|file| file.sync_data());",
            to: "patched.iter().take(0).try_for_each(|file| file.sync_data());",
        }],
    },
    // Touch a name that is patched and not settled.
    Mutant {
        name: "let-patches-overlap",
        suite: Suite::It("in_place::every_crash_leaves_patches_whole"),
        edits: &[Edit {
            file: "recovery/src/plan.rs",
            from: "self.moves_inodes() || self.patched().is_some()",
            to: "self.moves_inodes()",
        }],
    },
    // Recover a part of a patch.
    Mutant {
        name: "recover-the-first-patch-alone",
        suite: Suite::It("in_place::every_crash_leaves_patches_whole"),
        edits: &[Edit {
            file: "recovery/src/recover/in_place.rs",
            from: "        for patch in patched.patches() {
            let found",
            to: "        for patch in patched.patches().take(1) {
            let found",
        }],
    },
    // Write over what somebody else wrote without keeping it.
    Mutant {
        name: "keep-no-older-sector",
        suite: Suite::It("in_place::a_newer_sector_stays_and_an_older_one_gives_way"),
        edits: &[Edit {
            file: "recovery/src/recover/in_place.rs",
            from: "        if found.is_empty() {",
            to: "        if found.len() < usize::MAX {",
        }],
    },
    // Write into whatever file stands at the name.
    Mutant {
        name: "patch-another-inode",
        suite: Suite::It("in_place::another_file_at_the_name_stays"),
        edits: &[Edit {
            file: "recovery/src/apply.rs",
            from: "change.before.as_ref().is_some_and(|image| image.is_inode(found));",
            to: "change.before.as_ref().is_some_and(|image| image.kind == found.kind);",
        }],
    },
    // Make a checkpoint while others are logged.
    Mutant {
        name: "settle-what-is-not-applied",
        suite: Suite::It("found_reading::a_checkpoint_for_a_barrier_settles_nothing_that_is_not_applied"),
        edits: &[
            Edit {
                file: "engine/src/commit.rs",
                from: "overlaps(&prepared, &changed) || commits.has_to_settle_before(&prepared))",
                to: "overlaps(&prepared, &changed))",
            },
            Edit {
                file: "engine/src/settle.rs",
                from: "commits.unsettled.len() == transactions.len() && commits.is_all_applied;",
                to: "commits.unsettled.len() == transactions.len();",
            },
        ],
    },
    // Forget at a savepoint what was read since.
    Mutant {
        name: "forget-a-read",
        suite: Suite::It("found_reading::a_return_to_a_savepoint_forgets_no_read"),
        edits: &[Edit {
            file: "engine/src/view.rs",
            from: "                kept.is_read |= entry.is_read;
",
            to: "",
        }],
    },
    // Take a later look at a file for the first.
    Mutant {
        name: "forget-an-earlier-read",
        suite: Suite::It("found_reading::a_moved_file_is_still_the_one_that_was_read"),
        edits: &[Edit {
            file: "engine/src/transaction/lookup.rs",
            from: "if same_content && seen.attributes == image.attributes {",
            to: "if same_content || true {",
        }],
    },
    // Replace a file by one with the mode of a new one.
    Mutant {
        name: "lose-the-mode",
        suite: Suite::It("metadata::replacing_keeps_everything"),
        edits: &[Edit {
            file: "engine/src/transaction/new_names.rs",
            from: "(Some(attributes), None) => Ok(attributes),",
            to: "(Some(_), None) => self.default_attributes(spot.dir, &spot.path, 0o666, mode, Kind::File),",
        }],
    },
    // Take an older header that the disk shows for the newest.
    Mutant {
        name: "believe-a-stale-header",
        suite: Suite::In(
            "atomtree-wal",
            "--test=log",
            "damage::an_older_header_over_newer_frames_is_refused",
        ),
        edits: &[Edit {
            file: "wal/src/scan.rs",
            from: "Opened::Segment(segment) if check_header_is_newest(segment).is_err() => {}",
            to: "Opened::Segment(segment) if check_header_is_newest(segment).is_err_and(|_| false) => {}",
        }],
    },
    // Poison a store whose checkpoint can be made later.
    Mutant {
        name: "poison-for-want-of-space",
        suite: Suite::It("upkeep::a_checkpoint_that_finds_no_space_for_a_header_is_made_later"),
        edits: &[Edit {
            file: "engine/src/settle.rs",
            from: "                Err(error) if error.is_no_space() && !commits.log.is_poisoned() => {
                    if",
            to: "                Err(error) if error.is_no_space() && commits.log.is_poisoned() => {
                    if",
        }],
    },
    // Leave a log full whose segment could not be freed for want of space.
    Mutant {
        name: "forget-a-segment-that-was-left",
        suite: Suite::It("upkeep::a_checkpoint_that_finds_no_space_for_a_header_is_made_later"),
        edits: &[Edit {
            file: "engine/src/checkpointer.rs",
            from: "let mut made = commits.log.retire(settled.next()).map(|freed| freed > 0);",
            to: "let mut made = if settled.0 == 0 { commits.log.retire(settled).map(|freed| freed > 0) } else { Ok(false) };",
        }],
    },
    // Write frames under a header that only the cache has.
    Mutant {
        name: "skip-the-sync-of-a-new-segment",
        suite: Suite::It("crash_points::every_crash_leaves_whole_transactions"),
        edits: &[Edit {
            file: "wal/src/log.rs",
            from: r#"let written = written.and_then(|()| next.file.sync_data().doing("sync", header.segment));"#,
            to: "",
        }],
    },
    // Commit behind a process that died in a commit, as if it had put that in place.
    Mutant {
        name: "leave-the-dead-unfinished",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/hand_over.rs",
            from: "if scan.tail().is_torn() || analysis.is_unfinished() {",
            to: "if scan.tail().is_torn() {",
        }],
    },
    // Settle what may have failed to be written before this process could hear of it.
    Mutant {
        name: "settle-what-is-older",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/settle.rs",
            from: "if commits.has_older_than_itself() {",
            to: "if commits.has_older_than_itself() && false {",
        }],
    },
    // Tell nobody else of a failed sync.
    Mutant {
        name: "keep-a-failure-to-oneself",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/lock.rs",
            from: "(_, Ok(id)) => self.set_mark(&Mark::Poisoned { id, reason: reason.to_owned() }),",
            to: "(_, Ok(_)) => Ok(()),",
        }],
    },
    // Close the log under others who have it open.
    Mutant {
        name: "close-the-log-of-others",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/settle.rs",
            from: "let left = match self.locks.is_alone() {",
            to: "let left = match self.locks.is_alone().map(|_| true) {",
        }],
    },
    // Forget what another process's checkpoint has not cleared.
    Mutant {
        name: "forget-what-is-uncleared",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/hand_over.rs",
            from: "self.uncleared = settled.cloned().collect();",
            to: "drop(settled);",
        }],
    },
    // Go on where somebody has recovered the store, with what was known before.
    Mutant {
        name: "miss-a-recovery",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/hand_over.rs",
            from: "&& *self.recovered.lock() != Some(id)",
            to: "&& self.recovered.lock().is_some_and(|known| known == id)",
        }],
    },
    // Stay poisoned because somebody died in a recovery that came after the one that mattered.
    Mutant {
        name: "miss-a-recovery-behind-another",
        suite: Suite::It("hand_over::who_was_poisoned_goes_on_behind_a_recovery_that_was_cut_short"),
        edits: &[Edit {
            file: "engine/src/store.rs",
            from: "Ok(Mark::Recovered { id } | Mark::Recovering { id }) if",
            to: "Ok(Mark::Recovered { id }) if",
        }],
    },
    // Recover beside others without saying so.
    Mutant {
        name: "recover-unheard",
        suite: Suite::It("hand_over::whoever_is_interrupted_the_others_go_on"),
        edits: &[Edit {
            file: "engine/src/hand_over.rs",
            from: r#"self.locks.set_mark(&Mark::Recovered { id }).doing("write", ".atomtree/lock")?;"#,
            to: r#"self.locks.set_mark(&Mark::None).doing("write", ".atomtree/lock")?;"#,
        }],
    },
    // Clear what is settled only once there is a record that lets everybody forget it.
    Mutant {
        name: "clear-behind-the-next-record",
        suite: Suite::It("hand_over::what_two_deaths_leave_goes_with_the_next_checkpoint"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from: "        repair.clear_settled(&mut keeper)?;
",
            to: "",
        }],
    },
    // Unlink the originals that the history has been promised.
    Mutant {
        name: "keep-no-original-that-was-settled",
        suite: Suite::It("hand_over::originals::an_original_in_ones_own_slot_is_kept"),
        edits: &[Edit {
            file: "recovery/src/recover.rs",
            from:
                "        keeper.want_settled(&settled().map(|transaction| transaction.begin.tx).collect())?;
",
            to: "",
        }],
    },
    // Write behind what a failed append has left, in the segment of one that takes it for its own.
    Mutant {
        name: "write-behind-a-failed-append",
        suite: Suite::It("hand_over::log_ends::nothing_is_written_behind_an_append_that_failed"),
        edits: &[Edit {
            file: "engine/src/hand_over.rs",
            from: "        log.leave_segment();
",
            to: "",
        }],
    },
    // Join, and believe the end of the log that the cache shows.
    Mutant {
        name: "join-behind-a-lost-tail",
        suite: Suite::It("hand_over::log_ends::nothing_is_acknowledged_behind_what_only_the_cache_has"),
        edits: &[Edit {
            file: "engine/src/open.rs",
            from: "if !is_alone {
            log.rewrite_tail",
            to: "if !is_alone && false {
            log.rewrite_tail",
        }],
    },
    // The same, for who reads the log anew.
    Mutant {
        name: "read-anew-behind-a-lost-tail",
        suite: Suite::It("hand_over::log_ends::nothing_is_acknowledged_behind_what_only_the_cache_has"),
        edits: &[Edit {
            file: "engine/src/hand_over.rs",
            from: "log.rewrite_tail(&scan).map_err(",
            to: "Ok::<(), wal::Error>(()).map_err(",
        }],
    },
    // Leave with a commit that came in behind the checkpoint.
    Mutant {
        name: "leave-before-everything-is-settled",
        suite: Suite::It("hand_over::closing::a_commit_between_two_closes_is_settled"),
        edits: &[Edit {
            file: "engine/src/settle.rs",
            from: "if commits.settled < commits.last_own {",
            to: "if commits.settled < commits.last_own && false {",
        }],
    },
    // Leave as many images as there are.
    Mutant {
        name: "leave-images-without-bound",
        suite: Suite::It("guards::cost::the_cache_keeps_to_its_bound"),
        edits: &[Edit {
            file: "recovery/src/guards/cache.rs",
            from: "let is_kept = left.checked_sub(original.image_bytes());",
            to: "let is_kept = left.checked_sub(original.image_bytes().min(left & 1));",
        }],
    },
    // Take what the last guard used for as old as its images.
    Mutant {
        name: "forget-that-an-image-was-used",
        suite: Suite::It("guards::cost::the_cache_keeps_to_its_bound"),
        edits: &[Edit {
            file: "recovery/src/guards/manifest.rs",
            from: "ImageOf { captured_ns: captured.0, ..image }",
            to: "ImageOf { captured_ns: image.captured_ns.max(captured.0.min(0)), ..image }",
        }],
    },
    // Remove images that an open guard needs.
    Mutant {
        name: "clear-images-of-an-open-guard",
        suite: Suite::It("guards::cost::the_cache_keeps_to_its_bound"),
        edits: &[Edit {
            file: "recovery/src/guards/cache.rs",
            from: "needed.extend(images_of(&manifest));",
            to: "drop(manifest);",
        }],
    },
    // Use an image again that is as young as the last change.
    Mutant {
        name: "use-an-image-that-is-too-young",
        suite: Suite::It(
            "guards::explored::an_edit_in_the_tick_of_a_capture_is_no_reason_to_use_its_image_again",
        ),
        edits: &[Edit {
            file: "recovery/src/guards/capture.rs",
            from: "if !is_told || !is_same ||",
            to: "if !is_same ||",
        }],
    },
    // Say that a guard stands whose images only the cache has.
    Mutant {
        name: "guard-with-unsynced-images",
        suite: Suite::It("guards::explored::every_crash_under_a_guard_ends_as_promised"),
        edits: &[Edit {
            file: "recovery/src/guards.rs",
            from: "self.sync_root.sync_filesystem().doing(\"sync the file system of\", \".\")?;",
            to: "",
        }],
    },
    // Hear of what one transaction has lost on behalf of another.
    Mutant {
        name: "sync-through-what-transactions-share",
        suite: Suite::It("write_back::what_was_staged_and_lost_is_told_to_its_own_transaction"),
        edits: &[Edit {
            file: "engine/src/stage.rs",
            from: "staging.sync_root.clone().unwrap_or_else(|| self.places.stage.clone());",
            to: "self.places.stage.clone();",
        }],
    },
    // Hear of what committed files have lost, and roll a guard back all the same.
    Mutant {
        name: "take-the-checkpoint-its-error",
        suite: Suite::It("write_back::what_was_committed_and_lost_is_told_to_the_checkpoint"),
        edits: &[Edit {
            file: "recovery/src/guards/restore.rs",
            from: "sync_root: places.root.open_dir(Path::new(\"\")).doing(\"open\", \".\")?,",
            to: "sync_root: places.root.clone(),",
        }],
    },
    // Keep edits in a store that is poisoned.
    Mutant {
        name: "keep-after-a-failed-sync",
        suite: Suite::It("write_back::edits_that_were_lost_are_not_kept"),
        edits: &[Edit {
            file: "engine/src/guard.rs",
            from: "if let Err(error) = engine.check_unpoisoned() {",
            to: "if let (Err(error), false) = (engine.check_unpoisoned(), true) {",
        }],
    },
    // Clear up only in a turn of one's own, while one has another.
    Mutant {
        name: "leave-what-an-abandoned-guard-left",
        suite: Suite::It("guards::a_guard_that_was_left_is_cleared_up_by_who_opens_another"),
        edits: &[Edit {
            file: "engine/src/guard.rs",
            from: "self.roll_back_abandoned(Some(turn))?",
            to: "self.roll_back_abandoned(None)?",
        }],
    },
    // Commit behind the end of a guard that a power cut may bring back.
    Mutant {
        name: "believe-an-end-that-is-not-durable",
        suite: Suite::It("guards::what_is_committed_behind_the_end_of_a_guard_stays"),
        edits: &[Edit {
            file: "recovery/src/guards.rs",
            from: "known.dir.sync().doing(\"sync\", &label)?;",
            to: "",
        }],
    },
    // Put images back with what a command has made of their attributes.
    Mutant {
        name: "put-an-image-back-as-it-is",
        suite: Suite::It("guards::what_touches_everything_has_not_destroyed_the_images"),
        edits: &[Edit { file: "recovery/src/guards/restore.rs", from: "mend(original, &*file)?;", to: "" }],
    },
    // Guard with an image that somebody has written to.
    Mutant {
        name: "use-an-image-that-was-touched",
        suite: Suite::It("guards::images_that_are_not_what_they_were_are_made_anew_or_not_believed"),
        edits: &[Edit {
            file: "recovery/src/guards/capture.rs",
            from: "image.is(&kept) && is_unwritten &&",
            to: "image.is(&kept) && (is_unwritten || true) &&",
        }],
    },
    // Try a checkpoint again at once that could not be begun.
    Mutant {
        name: "try-a-checkpoint-without-a-pause",
        suite: Suite::It("processes::poison::a_checkpoint_that_is_put_off_is_not_tried_without_a_pause"),
        edits: &[Edit { file: "engine/src/checkpointer.rs", from: "engine.put_off();", to: "" }],
    },
    // Read in the tree what somebody has committed since the history was read.
    Mutant {
        name: "read-what-came-meanwhile",
        suite: Suite::It("undo::cat_is_not_deceived_by_what_comes_meanwhile"),
        edits: &[Edit {
            file: "engine/src/undo.rs",
            from: "if store.last_tx()? != last {",
            to: "if store.last_tx()? < last {",
        }],
    },
    // Put an image back before what was mended of it is durable.
    Mutant {
        name: "put-a-mended-image-back-in-the-cache",
        suite: Suite::It("guards::touched_images_are_mended_before_they_are_put_back"),
        edits: &[Edit {
            file: "recovery/src/guards/restore.rs",
            from: "    image.sync_all()\n}",
            to: "    Ok(())\n}",
        }],
    },
    // Let others commit to a segment whose name a power cut may take away.
    Mutant {
        name: "use-a-segment-without-a-durable-name",
        suite: Suite::In(
            "atomtree-wal",
            "--test=log",
            "several::what_is_committed_to_a_segment_outlives_its_maker",
        ),
        edits: &[
            Edit {
                file: "wal/src/segment.rs",
                from: "dir.sync().on_directory(\"sync\")?;\n        // Last",
                to: "// Last",
            },
            Edit {
                file: "wal/src/segment.rs",
                from: "segment.file.sync_data().doing(\"sync\", id)?;",
                to: "segment.file.sync_data().doing(\"sync\", id)?;\n        dir.sync().on_directory(\"sync\")?;",
            },
        ],
    },
    // Let forked children keep a guard whose owner has died.
    Mutant {
        name: "show-a-guards-lock-to-forks",
        suite: Suite::It("processes::forks::forked_children_keep_no_lock_alive"),
        edits: &[Edit { file: "recovery/src/guards.rs", from: "self.lock.hide_from_forks()?;", to: "" }],
    },
    // End a guard whose kept edits only the cache has.
    Mutant {
        name: "keep-what-is-not-durable",
        suite: Suite::It("guards::explored::every_crash_under_a_guard_ends_as_promised"),
        edits: &[Edit {
            file: "recovery/src/guards.rs",
            from: "self.sync_root.sync_filesystem().doing(\"sync the file system of\", \".\").map_err(Ended::Not)?;",
            to: "",
        }],
    },
    // End a guard when what was put back is only in the cache.
    Mutant {
        name: "end-a-roll-back-too-early",
        suite: Suite::It("guards::explored::every_crash_under_a_guard_ends_as_promised"),
        edits: &[Edit {
            file: "recovery/src/guards/restore.rs",
            from: "    restore.close_directories(&found)?;
    restore.sync_root.sync_filesystem().doing(\"sync the file system of\", \".\")?;",
            to: "    restore.close_directories(&found)?;",
        }],
    },
    // Say that a guard has ended whose list may be back after a power cut.
    Mutant {
        name: "end-a-guard-in-the-cache",
        suite: Suite::It("guards::explored::every_crash_under_a_guard_ends_as_promised"),
        edits: &[Edit {
            file: "recovery/src/guards.rs",
            from: "dir.sync().doing(\"sync\", &label).map_err(Ended::Unknown)",
            to: "Ok(())",
        }],
    },
];
