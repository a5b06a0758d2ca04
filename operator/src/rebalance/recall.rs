//! Bringing home what went elsewhere while a slot's holder was out of reach.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use ring::SlotId;
use ring::placement::Predecessor;

use super::{Action, Machine, succession};
use crate::planner::MemberState;
use crate::pool::Mode;

/// Sidecars avoid a peer that did not answer for ten seconds, and then report what they hold: for so long its keys may
/// still go to their next-best slots.
const STILL_AVOIDED: Duration = Duration::from_secs(12);

impl Machine {
    /// Brings home what fell back while a slot's holder was out of reach. Under the placement as it is nobody would claim
    /// those keys from where they are, and nobody would count their return. So it is published again, with what was true
    /// meanwhile as predecessors: the slots were vacant.
    pub(super) fn recall(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Where load decides nothing has a home.
        if self.pool.pace.mode != Mode::Automatic || self.levels() {
            return;
        }
        let away = self.pending_by_slot();
        // While nothing else moves, whatever is not at its owner has fallen back.
        let fell_back = |slot: &SlotId| !self.saved.is_moving() || self.absent.contains_key(slot);
        let ready = self.destinations(now).into_keys();
        let back: BTreeSet<SlotId> = ready.filter(|slot| away.contains_key(slot) && fell_back(slot)).collect();
        if back.is_empty() {
            return;
        }
        // Slots that are still out of reach were so meanwhile: a key may have gone to its third-best.
        let all = self.absent.keys().chain(&back).copied().collect();
        let each = back.iter().map(|slot| BTreeSet::from([*slot]));
        let absences: Vec<BTreeSet<SlotId>> = [all, back.clone()].into_iter().chain(each).collect();
        let tables = self.tables();
        let meanwhile = absences.iter().flat_map(|absent| succession::without(&tables, absent));
        let known: Vec<Predecessor> = self.saved.predecessors.iter().chain(&self.saved.absences).cloned().collect();
        let is_dead = |uid: &str| self.is_dead(uid);
        let known = succession::predecessors(&self.table(), known, is_dead);
        let more = succession::predecessors(&self.table(), known.iter().cloned().chain(meanwhile), is_dead);
        let more = more.get(known.len()..).unwrap_or_default().to_vec();
        self.begin_move(now);
        if !more.is_empty() {
            self.saved.absences.extend(more);
            self.saved.version.epoch += 1;
            self.put_in_force(actions);
        }
    }

    /// Every table under which a key may be held, newest first.
    pub(super) fn tables(&self) -> Vec<Predecessor> {
        let current = Predecessor { version: self.saved.version, table: self.table() };
        std::iter::once(current).chain(self.saved.predecessors.iter().cloned()).collect()
    }

    pub(super) fn note_absences(&mut self, now: Instant) {
        // A member that leaves may have died before: then its keys went elsewhere, too.
        let silent = self.members.iter().filter(|member| member.silent && member.state != MemberState::Dead);
        let silent: HashSet<&str> = silent.filter_map(|member| member.uid.as_deref()).collect();
        let slots = self.saved.roster.slots.iter();
        let silent =
            slots.filter(|slot| slot.holder.as_ref().is_some_and(|holder| silent.contains(holder.uid.as_str())));
        let silent: Vec<(SlotId, Instant)> = silent.map(|slot| (slot.id, now)).collect();
        self.absent.extend(silent);
        self.absent.retain(|_, last| now < *last + STILL_AVOIDED);
    }
}
