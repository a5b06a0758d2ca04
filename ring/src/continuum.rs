//! A circle of points, each of which belongs to a slot: what most ingresses mean by consistent hashing.

use std::collections::HashSet;

use crate::{KeyHash, SlotId};

/// Which of its two neighbours takes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The first point at or behind it.
    Next,
    /// The nearer point, of a circle of 32 bits; at the same distance the one before it.
    Nearest,
}

/// Points on a circle, ready to be asked for owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuum {
    rule: Rule,
    /// Ascending, each once.
    points: Vec<u64>,
    /// Whose each of them is.
    slots: Vec<SlotId>,
    /// How many slots there are.
    count: usize,
}

impl Continuum {
    /// Builds it from points; of equal ones the first is kept.
    pub fn new(rule: Rule, mut points: Vec<(u64, SlotId)>) -> Self {
        points.sort_by_key(|(point, _)| *point);
        points.dedup_by_key(|(point, _)| *point);
        let count = points.iter().map(|(_, slot)| slot).collect::<HashSet<_>>().len();
        let (points, slots) = points.into_iter().unzip();
        Self { rule, points, slots, count }
    }

    /// The slot that owns the key: `None` only when there is no point.
    #[inline]
    pub fn owner(&self, key: KeyHash) -> Option<SlotId> {
        let next = self.next(key)?;
        Some(
            self.slots[match self.rule {
                Rule::Next => next,
                Rule::Nearest => self.nearer(key, self.before(next), next),
            }],
        )
    }

    /// All slots in the order in which they would own the key, were those before them gone.
    pub fn ranked(&self, key: KeyHash) -> Vec<SlotId> {
        let mut ranked = Vec::with_capacity(self.count);
        let mut seen = HashSet::with_capacity(self.count);
        let Some(mut next) = self.next(key) else { return ranked };
        let mut before = self.before(next);
        while ranked.len() < self.count {
            let point = match self.rule {
                Rule::Next => next,
                Rule::Nearest => self.nearer(key, before, next),
            };
            if point == next {
                next = self.after(next);
            } else {
                before = self.before(before);
            }
            if seen.insert(self.slots[point]) {
                ranked.push(self.slots[point]);
            }
        }
        ranked
    }

    /// The first point at or behind a key.
    #[inline]
    fn next(&self, key: KeyHash) -> Option<usize> {
        let index = self.points.partition_point(|point| *point < key.0);
        if self.points.is_empty() { None } else { Some(if index == self.points.len() { 0 } else { index }) }
    }

    fn before(&self, point: usize) -> usize {
        point.checked_sub(1).unwrap_or(self.points.len() - 1)
    }

    fn after(&self, point: usize) -> usize {
        (point + 1) % self.points.len()
    }

    #[expect(clippy::cast_possible_truncation, reason = "a circle of 32 bits")]
    fn nearer(&self, key: KeyHash, before: usize, next: usize) -> usize {
        let ahead = self.points[next].wrapping_sub(key.0) as u32;
        let behind = key.0.wrapping_sub(self.points[before]) as u32;
        if behind <= ahead { before } else { next }
    }
}
