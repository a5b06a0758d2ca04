//! A process clock in steps of 100 ms, small enough to stamp every connection with.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The length of a tick.
pub const TICK: Duration = Duration::from_millis(100);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Ticks since the clock was first read. It wraps after 13 years.
pub fn ticks() -> u32 {
    let elapsed = START.elapsed();
    #[expect(clippy::cast_possible_truncation, reason = "wrapping is harmless: only differences are used")]
    let seconds = elapsed.as_secs() as u32;
    seconds.wrapping_mul(10).wrapping_add(elapsed.subsec_millis() / 100)
}

/// Whole ticks from `stamp` to now.
pub fn ticks_since(stamp: u32) -> u32 {
    ticks().wrapping_sub(stamp)
}
