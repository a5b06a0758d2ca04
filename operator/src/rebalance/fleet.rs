//! What the sidecars of a pool say of themselves.
//!
//! Reports may come late, twice, or out of order. A process's totals never fall and its version never goes back, so an
//! older report is known by its numbers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ring::Version;
use ring::wire::{BreakCause, Report};
use serde::{Deserialize, Serialize};

/// A report older than this says nothing about now.
const FRESH: Duration = Duration::from_secs(2);

/// The sidecars that have been heard, by UID.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    sidecars: BTreeMap<String, Sidecar>,
    /// What processes that are gone had counted.
    breaks: BTreeMap<BreakCause, u64>,
}

/// One sidecar, and what it counted since the move began.
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// Its newest report.
    pub report: Report,
    /// When that came.
    pub heard: Instant,
    /// When it was heard first to hold the slot that it holds.
    pub slot_since: Instant,
    /// Evictions allowed to its process: the last grant's total, and at least what it has evicted.
    pub allowed: u64,
    baseline: Totals,
    /// Counted by earlier processes of this sidecar since the move began.
    earlier: Totals,
}

/// Totals of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// When the process began, in milliseconds since 1970.
    pub started: u64,
    /// Connections evicted.
    pub evicted: u64,
    /// Connections of moved keys that arrived.
    pub returned: u64,
    /// Handshakes that the app accepted.
    pub accepted: u64,
    /// Handshakes that failed.
    pub failed: u64,
    /// The time of the accepted ones, in milliseconds.
    pub handshake_ms: u64,
}

impl Totals {
    fn of(report: &Report) -> Self {
        Self {
            started: report.started,
            evicted: report.evicted,
            returned: report.returned,
            accepted: report.app.accepted,
            failed: report.app.failed,
            handshake_ms: report.app.handshake_ms,
        }
    }

    /// A process that has just begun.
    fn zero(started: u64) -> Self {
        Self { started, ..Self::default() }
    }

    /// What was counted after `base`.
    #[must_use]
    pub fn since(self, base: Self) -> Self {
        Self {
            started: self.started,
            evicted: self.evicted.saturating_sub(base.evicted),
            returned: self.returned.saturating_sub(base.returned),
            accepted: self.accepted.saturating_sub(base.accepted),
            failed: self.failed.saturating_sub(base.failed),
            handshake_ms: self.handshake_ms.saturating_sub(base.handshake_ms),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            started: self.started.max(other.started),
            evicted: self.evicted + other.evicted,
            returned: self.returned + other.returned,
            accepted: self.accepted + other.accepted,
            failed: self.failed + other.failed,
            handshake_ms: self.handshake_ms + other.handshake_ms,
        }
    }
}

impl Sidecar {
    /// What it counted since the move began, over all its processes.
    pub fn counted(&self) -> Totals {
        self.earlier.and(Totals::of(&self.report).since(self.baseline))
    }

    /// Its totals when the move began, or when its process did.
    pub fn baseline(&self) -> Totals {
        self.baseline
    }

    /// Whether it has a placement.
    pub fn has(&self, pool_uid: &str, version: Version) -> bool {
        self.report.pool_uid == pool_uid && self.report.version == version
    }

    /// Whether its report speaks about now.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) <= FRESH
    }

    fn is_older(&self, report: &Report) -> bool {
        let known = &self.report;
        let pool_changed = report.pool_uid != known.pool_uid;
        report.started < known.started
            || (report.started == known.started
                && (report.evicted < known.evicted
                    || report.returned < known.returned
                    || (report.version < known.version && !pool_changed)))
    }
}

impl Fleet {
    /// Takes a report in. `baselines` are those of a move that an earlier operator began. Answers whether the process has
    /// taken the place of another one.
    pub fn hear(&mut self, report: Report, baselines: &BTreeMap<String, Totals>, now: Instant) -> bool {
        let Some(known) = self.sidecars.get_mut(&report.uid) else {
            let own = Totals::of(&report);
            let baseline = match baselines.get(&report.uid) {
                Some(saved) if saved.started == report.started => *saved,
                // It began after the move did: all that it counted belongs to the move.
                Some(_) => Totals::zero(report.started),
                None if baselines.values().all(|other| other.started < report.started) && !baselines.is_empty() => {
                    Totals::zero(report.started)
                }
                None => own,
            };
            let allowed = report.evicted;
            let sidecar =
                Sidecar { heard: now, slot_since: now, allowed, baseline, earlier: Totals::default(), report };
            self.sidecars.insert(sidecar.report.uid.clone(), sidecar);
            return false;
        };
        if known.is_older(&report) {
            return false;
        }
        let restarted = report.started > known.report.started;
        if restarted {
            add(&mut self.breaks, &known.report.breaks);
            known.earlier = known.counted();
            known.baseline = Totals::zero(report.started);
            known.allowed = 0;
        }
        if report.slot != known.report.slot {
            known.slot_since = now;
        }
        known.report = report;
        known.heard = now;
        restarted
    }

    /// One sidecar.
    pub fn get(&self, uid: &str) -> Option<&Sidecar> {
        self.sidecars.get(uid)
    }

    /// One sidecar, to note what it was allowed.
    pub fn get_mut(&mut self, uid: &str) -> Option<&mut Sidecar> {
        self.sidecars.get_mut(uid)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Sidecar> {
        self.sidecars.values()
    }

    /// A move begins: totals count from here.
    pub fn begin_move(&mut self) {
        for sidecar in self.sidecars.values_mut() {
            sidecar.baseline = Totals::of(&sidecar.report);
            sidecar.earlier = Totals::default();
        }
    }

    /// Forgets sidecars; what they broke stays counted.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let breaks = &mut self.breaks;
        self.sidecars.retain(|uid, sidecar| {
            let kept = keep(uid);
            if !kept {
                add(breaks, &sidecar.report.breaks);
            }
            kept
        });
    }

    /// Evicted and returned since the move began.
    pub fn moved_so_far(&self) -> (u64, u64) {
        let counted = self.iter().map(Sidecar::counted);
        counted.fold((0, 0), |(evicted, returned), t| (evicted + t.evicted, returned + t.returned))
    }

    /// Handshakes that apps accepted since the move began.
    pub fn accepted_so_far(&self) -> u64 {
        self.iter().map(|sidecar| sidecar.counted().accepted).sum()
    }

    /// Connections ended by us since this operator began to listen, by cause.
    pub fn breaks(&self) -> BTreeMap<BreakCause, u64> {
        let mut breaks: BTreeMap<_, _> = BreakCause::ALL.into_iter().map(|cause| (cause, 0)).collect();
        add(&mut breaks, &self.breaks);
        for sidecar in self.iter() {
            add(&mut breaks, &sidecar.report.breaks);
        }
        breaks
    }

    /// The newest version that a sidecar of this pool has.
    pub fn newest(&self, pool_uid: &str) -> Option<Version> {
        self.iter().filter(|s| s.report.pool_uid == pool_uid).map(|s| s.report.version).max()
    }
}

fn add(sums: &mut BTreeMap<BreakCause, u64>, more: &BTreeMap<BreakCause, u64>) {
    for (&cause, count) in more {
        *sums.entry(cause).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(started: u64, evicted: u64, returned: u64) -> Report {
        Report { uid: "a".into(), started, evicted, returned, ..Report::default() }
    }

    fn fleet(reports: &[Report]) -> Fleet {
        let mut fleet = Fleet::default();
        for report in reports {
            fleet.hear(report.clone(), &BTreeMap::new(), Instant::now());
        }
        fleet
    }

    #[test]
    fn totals_count_from_the_beginning_of_the_move() {
        let mut fleet = fleet(&[report(1, 100, 50)]);
        fleet.begin_move();
        fleet.hear(report(1, 110, 53), &BTreeMap::new(), Instant::now());
        assert_eq!(fleet.moved_so_far(), (10, 3));
    }

    #[test]
    fn a_late_report_changes_nothing() {
        let mut fleet = fleet(&[report(1, 0, 0)]);
        fleet.begin_move();
        for late in [report(2, 10, 5), report(2, 9, 5), report(2, 10, 4), report(1, 99, 99)] {
            fleet.hear(late, &BTreeMap::new(), Instant::now());
        }
        assert_eq!(fleet.moved_so_far(), (10, 5));
    }

    #[test]
    fn a_restarted_process_counts_from_zero_and_its_predecessor_still_counts() {
        let mut fleet = fleet(&[report(1, 100, 0)]);
        fleet.begin_move();
        fleet.hear(report(1, 120, 0), &BTreeMap::new(), Instant::now());
        fleet.hear(report(2, 5, 0), &BTreeMap::new(), Instant::now());
        assert_eq!(fleet.moved_so_far(), (25, 0));
        assert_eq!(fleet.get("a").unwrap().allowed, 0);
    }

    #[test]
    fn an_operator_that_took_over_counts_from_the_saved_baseline() {
        let saved = BTreeMap::from([("a".to_owned(), Totals { started: 1, evicted: 100, ..Totals::default() })]);
        let mut fleet = Fleet::default();
        fleet.hear(report(1, 130, 0), &saved, Instant::now());
        assert_eq!(fleet.moved_so_far(), (30, 0));
    }

    #[test]
    fn a_process_younger_than_the_move_counts_in_full() {
        let saved = BTreeMap::from([("b".to_owned(), Totals { started: 5, ..Totals::default() })]);
        for (started, counted) in [(6, (10, 4)), (4, (0, 0))] {
            let mut fleet = Fleet::default();
            fleet.hear(report(started, 10, 4), &saved, Instant::now());
            assert_eq!(fleet.moved_so_far(), counted);
        }
    }

    #[test]
    fn breaks_of_processes_that_are_gone_stay_counted() {
        let broke = |started, count| Report { breaks: [(BreakCause::Drain, count)].into(), ..report(started, 0, 0) };
        let mut fleet = fleet(&[broke(1, 3), broke(2, 4)]);
        fleet.retain(|_| false);
        assert_eq!(fleet.breaks()[&BreakCause::Drain], 7);
    }
}
