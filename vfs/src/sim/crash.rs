//! What a power cut or a kill leaves: the choices that are open, the dice that decide them, and the state that results.
//!
//! The state that is cut is never changed. Whatever a cut decides is both cached and durable in the result, because
//! after a reboot the cache holds what the disk holds.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::data::FileData;
use super::names::Slot;
use super::state::{Attributes, Body, Id, Inode, NAME_BYTES, Names, ROOT, State};
use crate::SECTOR_BYTES;

/// Splitmix64: small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A likelihood of survival in percent, chosen once for a whole cut so that the extremes are visited.
    fn style(&mut self) -> u64 {
        [0, 10, 50, 90, 100][self.below(5) as usize]
    }
}

/// What a cut does to one inode.
pub(super) struct Fate {
    pub(super) data: DataFate,
    /// Whether mode, owner and times are the new ones.
    attributes: bool,
    xattrs: bool,
}

/// What a cut does to unsynced data.
pub(super) enum DataFate {
    /// Nothing of it reached the disk.
    Old,
    /// All of it did.
    New,
    /// The length did, the data did not.
    Hollow,
    /// Some sectors did.
    Torn(Tear),
}

/// How a file is torn.
pub(super) struct Tear {
    random: Random,
    percent: u64,
    /// When set, exactly the first so many dirty sectors reached the disk.
    first: Option<u64>,
}

impl Tear {
    pub(super) fn reaches_disk(&mut self, index: u64) -> bool {
        match self.first {
            Some(first) => index < first,
            None => self.random.chance(self.percent),
        }
    }

    pub(super) fn leaves_zeros(&mut self) -> bool {
        self.random.chance(50)
    }

    pub(super) fn length(&mut self, durable: u64, floor: u64, cached: u64) -> u64 {
        match self.random.below(8) {
            0..4 => cached,
            4..6 => durable,
            6 => floor,
            _ => {
                // File systems that allocate late move the length along as they write.
                let sector = SECTOR_BYTES as u64;
                let sectors = cached.saturating_sub(floor).div_ceil(sector);
                (floor + self.random.below(sectors + 1) * sector).min(cached)
            }
        }
    }
}

impl Fate {
    fn roll(random: &mut Random, percent: u64, inode: &Inode) -> Self {
        let data = match (percent, random.below(4)) {
            (0, _) => DataFate::Old,
            (100, _) => DataFate::New,
            (_, 0) if random.chance(percent) => DataFate::New,
            (_, 0) => DataFate::Old,
            (_, 1) => DataFate::Hollow,
            _ => {
                let sectors = match &inode.body {
                    Body::File(data) => data.dirty_sectors(),
                    _ => 0,
                };
                let first = random.chance(50).then(|| random.below(sectors + 1));
                DataFate::Torn(Tear { random: Random::new(random.next()), percent, first })
            }
        };
        Self { data, attributes: random.chance(percent), xattrs: random.chance(percent) }
    }

    /// One of the [`Self::variants`] of an inode, by number.
    fn numbered(variant: u64, inode: &Inode) -> Self {
        let (data, attributes) = if inode.data_dirty() { (variant % 4, variant / 4) } else { (0, variant) };
        let data = match data {
            0 => DataFate::Old,
            1 => DataFate::New,
            2 => DataFate::Hollow,
            _ => DataFate::Torn(Tear { random: Random::new(inode.number), percent: 50, first: None }),
        };
        let attributes = attributes == 1 || !inode.attributes_dirty;
        Self { data, attributes, xattrs: attributes }
    }

    fn variants(inode: &Inode) -> u64 {
        let data = if inode.data_dirty() { 4 } else { 1 };
        if inode.attributes_dirty { data * 2 } else { data }
    }
}

impl State {
    /// How many pending name operations and inodes with unsynced changes a cut decides about.
    pub(super) fn choices(&self) -> u64 {
        (self.pending.len() + self.inodes.values().filter(|inode| inode.undecided()).count()) as u64
    }

    pub(super) fn after_random_cut(&self, seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Names and data have their own styles: a name without its data, and data without its name, are what breaks.
        let (names, data) = (random.style(), random.style());
        let mut dice = Random::new(random.next());
        self.after_cut(|_| random.chance(names), |_, inode| Fate::roll(&mut dice, data, inode)).0
    }

    pub(super) fn after_all_cuts(&self, limit: u64) -> Option<Vec<Self>> {
        let undecided: Vec<(Id, u64)> = (self.inodes.iter())
            .filter(|(_, inode)| inode.undecided())
            .map(|(id, inode)| (*id, Fate::variants(inode)))
            .collect();
        let subsets = 1_u64.checked_shl(self.pending.len() as u32).filter(|subsets| *subsets > 0)?;
        let fates =
            undecided.iter().try_fold(1_u64, |product, (_, variants)| product.checked_mul(*variants))?;
        if subsets.checked_mul(fates)? > limit {
            return None;
        }
        let mut states = Vec::new();
        for subset in 0..subsets {
            for fate in 0..fates {
                let mut left = fate;
                let chosen: BTreeMap<Id, u64> = (undecided.iter())
                    .map(|(id, variants)| {
                        let variant = left % variants;
                        left /= variants;
                        (*id, variant)
                    })
                    .collect();
                let (state, possible) = self.after_cut(
                    |index| subset & (1 << index) != 0,
                    |id, inode| Fate::numbered(chosen.get(&id).copied().unwrap_or(0), inode),
                );
                if !possible {
                    break;
                }
                states.push(state);
            }
        }
        Some(states)
    }

    /// The state after a cut, and whether every operation that was to survive could.
    fn after_cut(
        &self,
        mut survives: impl FnMut(usize) -> bool,
        mut fate: impl FnMut(Id, &Inode) -> Fate,
    ) -> (Self, bool) {
        let mut next = self.clone();
        let mut possible = true;
        let mut blocked: HashSet<&Slot> = HashSet::new();
        for (index, operation) in self.pending.iter().enumerate() {
            let free = operation.changes.iter().all(|change| !blocked.contains(&change.slot));
            let chosen = survives(index);
            if !(chosen && free && next.apply_durably(operation)) {
                possible &= !chosen;
                blocked.extend(operation.changes.iter().map(|change| &change.slot));
            }
        }
        next.pending.clear();

        let mut inodes = BTreeMap::new();
        let mut reached = vec![ROOT];
        while let Some(id) = reached.pop() {
            let inode = next.inode(id);
            if let Body::Dir { durable, .. } = &inode.body {
                reached.extend(durable.entries.values().filter(|id| !inodes.contains_key(*id)));
            }
            inodes.insert(id, Arc::clone(&next.inodes[&id]));
        }
        let mut links: BTreeMap<Id, u64> = BTreeMap::from([(ROOT, 1)]);
        for inode in inodes.values() {
            if let Body::Dir { durable, .. } = &inode.body {
                durable.entries.values().for_each(|id| *links.entry(*id).or_default() += 1);
            }
        }
        // In the order of ids, so that the same seed always means the same.
        for (id, inode) in &mut inodes {
            let fate = fate(*id, inode);
            settle(Arc::make_mut(inode), fate, links[id]);
        }
        if next.inode_reuse {
            let used: HashSet<u64> = inodes.values().map(|inode| inode.number).collect();
            let gone = next.inodes.values().map(|inode| inode.number).filter(|number| !used.contains(number));
            next.free_numbers.extend(gone);
            next.free_numbers.retain(|number| !used.contains(number));
        }
        if next.space.0.is_some() {
            next.space.give(self.used_bytes());
        }
        next.inodes = inodes;
        let used = next.used_bytes();
        next.space.take_up_to(used);
        next.boot += 1;
        next.failures = 0;
        // No machine is back within a second.
        next.clock_ns += 1_000_000_000;
        next.restart();
        (next, possible)
    }

    /// What a kill leaves: the machine goes on, its processes don't.
    pub(super) fn after_kill(&self) -> Self {
        let mut next = self.clone();
        let held: Vec<Id> =
            self.inodes.iter().filter(|(_, inode)| inode.opens > 0).map(|(id, _)| *id).collect();
        for id in held {
            let inode = next.inode_mut(id);
            inode.opens = 0;
            inode.locks.clear();
            next.collect(id);
        }
        next.restart();
        next
    }

    fn restart(&mut self) {
        self.alive.clear();
        self.operations = 0;
        self.halt_at = None;
        self.halted = false;
        self.fail_next_sync = false;
        self.trace = Arc::default();
    }

    /// What counts against the space, on the cached side.
    fn used_bytes(&self) -> u64 {
        if self.space.0.is_none() {
            return 0;
        }
        let used = |inode: &Arc<Inode>| match &inode.body {
            _ if inode.links == 0 && inode.opens == 0 => 0,
            Body::File(data) => data.cached.allocated_bytes(),
            Body::Dir { cached, .. } => cached.entries.len() as u64 * NAME_BYTES,
            Body::Symlink(_) | Body::Other => 0,
        };
        self.inodes.values().map(used).sum()
    }
}

/// Makes one inode, on both sides, what the cut left of it.
fn settle(inode: &mut Inode, mut fate: Fate, links: u64) {
    match &mut inode.body {
        Body::File(data) => *data = FileData::durable(data.after_cut(&mut fate)),
        Body::Dir { cached, durable } => *cached = Names::clone(durable),
        Body::Symlink(_) | Body::Other => {}
    }
    let core = if fate.attributes { &inode.cached } else { &inode.durable };
    let xattrs = if fate.xattrs { &inode.cached.xattrs } else { &inode.durable.xattrs };
    let settled = Attributes { xattrs: Arc::clone(xattrs), ..core.clone() };
    inode.durable = settled.clone();
    inode.cached = settled;
    inode.attributes_dirty = false;
    (inode.links, inode.durable_links) = (links, links);
    (inode.pending, inode.opens, inode.failures) = (0, 0, 0);
    inode.locks.clear();
    inode.released = false;
}
