//! Permission to evict, spent evenly over its life.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ring::wire::Grant;
use ring::{SlotId, Version};

/// The longest life that a grant may ask for: an operator that dies must stop the move soon.
pub const MAX_TTL: Duration = Duration::from_secs(2);

/// The grant in force.
///
/// A renewed grant continues where the last one stood, so that renewals neither add up nor pause the flow. A key with
/// more connections than are left is still moved whole, and the debt is paid from what comes next.
#[derive(Clone, Debug)]
pub struct Bucket {
    version: Version,
    /// Evictions allowed in all.
    total: u64,
    /// Evictions spent when the grant came in.
    base: u64,
    /// Earned and not spent when the grant came in; negative while a large key is being paid for.
    credit: f64,
    from: Instant,
    ttl: Duration,
    to: BTreeSet<SlotId>,
}

/// Why a grant was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// It was given under another placement.
    #[error("the grant is for {granted}, this sidecar is at {current}; publish the placement first")]
    Version {
        /// The grant's.
        granted: Version,
        /// The placement's.
        current: Version,
    },
}

impl Bucket {
    /// Takes a grant in. The greatest total of a version wins while it lasts, so that a repeated or overtaken request
    /// changes nothing but the time. Of one that has died only the debt is left.
    pub fn grant(
        held: Option<&Self>,
        grant: &Grant,
        current: Version,
        spent: u64,
        now: Instant,
    ) -> Result<Self, GrantError> {
        if grant.version != current {
            return Err(GrantError::Version { granted: grant.version, current });
        }
        let (total, credit) = match held.filter(|held| held.version == current) {
            None => (0, 0.0),
            Some(held) if held.is_alive(current, now) => (held.total, held.balance(spent, now)),
            Some(held) => (0, held.balance(spent, now).min(0.0)),
        };
        Ok(Self {
            version: current,
            total: grant.allow_total.max(total),
            base: spent,
            credit,
            from: now,
            ttl: Duration::from_millis(grant.ttl_ms).min(MAX_TTL),
            to: grant.to.iter().copied().collect(),
        })
    }

    /// Evictions that may begin now; negative while a large key is being paid for.
    pub fn available(&self, current: Version, spent: u64, now: Instant) -> i64 {
        if !self.is_alive(current, now) {
            return 0;
        }
        // Rounded, so that a grant of one is spent before it ends; the sum never exceeds what was granted.
        #[allow(clippy::cast_possible_truncation, reason = "totals are far below 2^52")]
        let whole = self.balance(spent, now).round() as i64;
        whole
    }

    #[allow(clippy::cast_precision_loss, reason = "totals are far below 2^52")]
    fn balance(&self, spent: u64, now: Instant) -> f64 {
        let passed = now.duration_since(self.from).as_secs_f64() / self.ttl.as_secs_f64().max(f64::EPSILON);
        let still_to_earn = self.total.saturating_sub(self.base) as f64 - self.credit;
        let since = spent.saturating_sub(self.base) as f64;
        self.credit + still_to_earn.max(0.0) * passed.min(1.0) - since
    }

    /// Whether it still counts.
    pub fn is_alive(&self, current: Version, now: Instant) -> bool {
        self.version == current && !self.ttl.is_zero() && now < self.from + self.ttl
    }

    /// Whether keys may be moved to a slot.
    pub fn allows(&self, slot: SlotId) -> bool {
        self.to.contains(&slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Version = Version { term: 1, epoch: 7 };

    fn grant(total: u64) -> Grant {
        Grant { target: "pod".into(), version: V, allow_total: total, ttl_ms: 1000, to: vec![SlotId(1)] }
    }

    #[test]
    fn a_grant_is_spent_evenly_and_dies_with_its_time() {
        let start = Instant::now();
        let bucket = Bucket::grant(None, &grant(100), V, 0, start).unwrap();
        assert_eq!(bucket.available(V, 0, start), 0);
        assert_eq!(bucket.available(V, 0, start + Duration::from_millis(500)), 50);
        assert_eq!(bucket.available(V, 80, start + Duration::from_millis(500)), -30);
        assert_eq!(bucket.available(V, 0, start + Duration::from_millis(1000)), 0);
        assert_eq!(bucket.available(Version { term: 2, epoch: 8 }, 0, start + Duration::from_millis(500)), 0);
    }

    #[test]
    fn a_repeated_grant_never_doubles_what_may_be_evicted() {
        let start = Instant::now();
        let mut bucket = Bucket::grant(None, &grant(100), V, 0, start).unwrap();
        for tenth in 1..10 {
            let now = start + Duration::from_millis(100 * tenth);
            bucket = Bucket::grant(Some(&bucket), &grant(100), V, 40, now).unwrap();
        }
        assert_eq!(bucket.available(V, 40, start + Duration::from_millis(1899)), 60);
    }

    #[test]
    fn a_grant_of_one_is_spent_although_it_is_renewed_all_the_time() {
        let start = Instant::now();
        let mut bucket = Bucket::grant(None, &grant(1), V, 0, start).unwrap();
        let mut passed = Duration::ZERO;
        while bucket.available(V, 0, start + passed) == 0 {
            passed += Duration::from_millis(100);
            bucket = Bucket::grant(Some(&bucket), &grant(1), V, 0, start + passed).unwrap();
        }
        assert!(passed < Duration::from_secs(1), "spent after {passed:?}");
    }

    #[test]
    fn the_greatest_total_wins() {
        let start = Instant::now();
        let bucket = Bucket::grant(None, &grant(100), V, 0, start).unwrap();
        let overtaken = Bucket::grant(Some(&bucket), &grant(10), V, 0, start).unwrap();
        assert_eq!(overtaken.available(V, 0, start + Duration::from_millis(500)), 50);
    }

    #[test]
    fn a_grant_that_has_died_leaves_neither_its_total_nor_a_burst() {
        let start = Instant::now();
        let dead = Bucket::grant(None, &grant(100), V, 0, start).unwrap();
        let later = start + Duration::from_secs(5);
        let next = Bucket::grant(Some(&dead), &grant(20), V, 10, later).unwrap();
        assert_eq!(next.available(V, 10, later), 0);
        assert_eq!(next.available(V, 10, later + Duration::from_millis(999)), 10);
    }

    #[test]
    fn the_debt_of_a_large_key_outlives_its_grant() {
        let start = Instant::now();
        let dead = Bucket::grant(None, &grant(10), V, 0, start).unwrap();
        let later = start + Duration::from_secs(5);
        let next = Bucket::grant(Some(&dead), &grant(50), V, 40, later).unwrap();
        assert_eq!(next.available(V, 40, later), -30);
    }

    #[test]
    fn a_grant_under_another_placement_is_refused() {
        let older = Version { term: 1, epoch: 8 };
        let refused = Bucket::grant(None, &grant(1), older, 0, Instant::now()).unwrap_err();
        assert_eq!(refused, GrantError::Version { granted: V, current: older });
    }
}
