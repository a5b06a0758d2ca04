//! Leaving the pool's Service before the pod is deleted.
//!
//! A sidecar whose slot went to nobody it knows of, while its pod stays, is about to go: its pool shrinks. Clients who come
//! in there would be broken once more when it does. So it says at once that it is not ready, and its connections wait until
//! that is heard; they would come back by the same door.

use std::time::{Duration, Instant};

use ring::SlotId;

use crate::drain::HEARD;

/// A pod that is still there so long after its last connection has moved was not meant to go.
const GOES_WITHIN: Duration = Duration::from_secs(10);

/// Whether this sidecar has lost its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retirement {
    lost: Option<Instant>,
    moved: Option<Instant>,
}

impl Retirement {
    /// Learns which slot it had and has, and whether connections move, with a newer placement.
    pub fn follow(&mut self, had: Option<SlotId>, has: Option<SlotId>, moving: bool, now: Instant) {
        if has.is_some() {
            *self = Self::default();
        } else if had.is_some() {
            self.lost = Some(now);
        }
        self.moved = if moving { None } else { self.moved.or(Some(now)) };
    }

    /// Whether clients should no longer come in here.
    pub fn is_retired(&self, now: Instant) -> bool {
        self.lost.is_some() && self.moved.is_none_or(|moved| now < moved + GOES_WITHIN)
    }

    /// Whether they still may, so that whoever is sent away now would come back here.
    pub fn is_entered(&self, now: Instant) -> bool {
        self.lost.is_some_and(|lost| now < lost + HEARD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Option<SlotId> = Some(SlotId(2));

    #[test]
    fn a_slot_that_is_lost_retires_until_it_is_back_or_long_after_the_move() {
        let now = Instant::now();
        let mut retirement = Retirement::default();
        retirement.follow(None, SLOT, false, now);
        assert!(!retirement.is_retired(now) && !retirement.is_entered(now));
        retirement.follow(SLOT, None, true, now);
        retirement.follow(None, None, true, now + Duration::from_secs(1));
        assert!(retirement.is_entered(now + Duration::from_secs(2)));
        assert!(!retirement.is_entered(now + HEARD));
        assert!(retirement.is_retired(now + Duration::from_secs(600)));
        let moved = now + Duration::from_secs(600);
        retirement.follow(None, None, false, moved);
        assert!(retirement.is_retired(moved + Duration::from_secs(9)));
        assert!(!retirement.is_retired(moved + GOES_WITHIN));
        retirement.follow(None, SLOT, true, now + Duration::from_secs(5));
        assert!(!retirement.is_retired(now + Duration::from_secs(5)));
    }

    #[test]
    fn a_spare_is_not_retired() {
        let now = Instant::now();
        let mut retirement = Retirement::default();
        retirement.follow(None, None, true, now);
        retirement.follow(None, None, false, now);
        assert!(!retirement.is_retired(now) && !retirement.is_entered(now));
    }
}
