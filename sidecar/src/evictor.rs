//! The one task that begins evictions: as grants allow, or as a drain must.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use ring::SlotId;
use ring::wire::{Draining, Peer, Returning, Returns};
use tokio::sync::watch;

use crate::drain::{Facts, MARGIN, Step};
use crate::messages::HOLD;
use crate::registry::Registry;
use crate::sidecar::Sidecar;

/// How often evictions begin while there is something to evict: fine enough that they come one by one at any sane rate.
const TICK: Duration = Duration::from_millis(10);
/// How often to look when there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);
/// How long a drained sidecar hears no question before it ends: what was asked before its peers knew is on its way.
const LAST_QUESTIONS: Duration = Duration::from_millis(100);
/// How many requests a drained sidecar sends at a time.
const TOLD_AT_ONCE: usize = 32;
/// How long a drained sidecar waits for others to take the messages that it holds.
const PASSING_ON: Duration = Duration::from_secs(2);

/// Runs until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, mut stop: watch::Receiver<bool>) {
    loop {
        sidecar.registry().expire_pins(Instant::now());
        let granted = spend_grant(&sidecar, Instant::now());
        let draining = step_drain(&sidecar, granted, Instant::now()).await;
        let pause = if granted || draining { TICK } else { IDLE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = sidecar.evictions.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Begins the evictions that the grant in force has paid for; says whether there is one.
fn spend_grant(sidecar: &Sidecar, now: Instant) -> bool {
    if sidecar.drain().is_none() && sidecar.retirement().is_entered(now) {
        return false;
    }
    let hurry = hurries(sidecar, now);
    let grant = sidecar.grant();
    let Some(bucket) = grant.as_ref() else { return false };
    let mut registry = sidecar.registry();
    let version = registry.view().version();
    let allowed = |slot: Option<SlotId>| slot.is_some_and(|slot| bucket.allows(slot));
    if registry.view().by_load() {
        let due = bucket.available(version, registry.spent(), now);
        registry.evict_idlest(u64::try_from(due).unwrap_or(0));
        return bucket.is_alive(version, now);
    }
    while bucket.available(version, registry.spent(), now) > 0 && registry.evict_next(allowed, hurry) > 0 {}
    bucket.is_alive(version, now)
}

/// Whether a drain has no time for keys that wait for their devices.
fn hurries(sidecar: &Sidecar, now: Instant) -> bool {
    sidecar.drain().as_ref().is_some_and(|drain| drain.left(now) < HOLD + MARGIN)
}

/// Takes a drain one step on; says whether there is one.
async fn step_drain(sidecar: &Arc<Sidecar>, granted: bool, now: Instant) -> bool {
    if sidecar.drain().is_none() {
        return false;
    }
    let mut facts = facts(&sidecar.registry(), granted);
    if facts.pinned > 0 && sidecar.drain().as_ref().is_some_and(|drain| drain.ends_pins(&facts, now)) {
        let mut registry = sidecar.registry();
        registry.end_pins();
        facts = self::facts(&registry, granted);
    }
    let (step, first) = {
        let mut drain = sidecar.drain();
        let Some(drain) = drain.as_mut() else { return false };
        let step = drain.step(&facts, now);
        let first = matches!(step, Step::Evict(_)) && !std::mem::replace(&mut drain.announced, true);
        (step, first)
    };
    match step {
        Step::Wait | Step::Done => {}
        Step::Evict(due) => {
            if first {
                announce(sidecar).await;
            }
            evict(sidecar, due, hurries(sidecar, now));
        }
        Step::GiveUp => cut_all(sidecar),
    }
    true
}

fn facts(registry: &Registry, granted: bool) -> Facts {
    let view = registry.view();
    let all = registry.all();
    let staying = all - registry.leaving();
    let pinned = registry.pinned().connections;
    let granted_for = if view.by_load() {
        registry.staying_here() - pinned
    } else if view.slot.is_some() {
        staying - pinned
    } else {
        registry.moved().connections
    };
    let (placed, holds_slot, rate) = (view.placement.is_some(), view.slot.is_some(), view.settings().rate.0);
    Facts { placed, granted, holds_slot, staying, all, pinned, granted_for, rate }
}

/// Begins to use next-best slots, before connections are asked to leave.
async fn announce(sidecar: &Sidecar) {
    sidecar.registry().set_draining(&sidecar.config.uid, true);
    if sidecar.view().placement.is_some() {
        tracing::warn!("the operator has not moved this slot: peers take the next-best one of each of its keys");
        tell_peers(sidecar, true, false).await;
    }
}

/// Ends a drain before its end: the pod stays.
pub async fn call_off_drain(sidecar: &Sidecar) {
    let drain = sidecar.drain().take();
    {
        let mut registry = sidecar.registry();
        registry.set_draining(&sidecar.config.uid, false);
        registry.allow_pins();
    }
    if drain.is_some_and(|drain| drain.announced) {
        tell_peers(sidecar, false, false).await;
    }
}

async fn tell_peers(sidecar: &Sidecar, draining: bool, gone: bool) {
    let view = sidecar.view();
    let notice = Draining { pool_uid: view.pool_uid().to_owned(), uid: view.me.uid.clone(), draining, gone };
    let tell = async |peer: Peer| {
        if let Err(error) = sidecar.peers.announce(&peer, &notice).await {
            tracing::warn!(peer = %peer.address, %error, "a peer could not be told of the drain");
        }
    };
    stream::iter(view.peers().into_iter().map(tell)).buffer_unordered(TOLD_AT_ONCE).collect::<()>().await;
}

/// Tells the peers that there is nothing here any more to ask for, and answers those that have asked before they knew:
/// otherwise they could not tell what has become of a message.
async fn take_leave(sidecar: &Sidecar) {
    if sidecar.config.is_router() || sidecar.registry().all() > 0 {
        return;
    }
    sidecar.registry().set_gone(&sidecar.config.uid, true);
    tell_peers(sidecar, true, true).await;
    let until = Instant::now() + PASSING_ON;
    let mut quiet = Instant::now();
    while Instant::now() < until.min(quiet + LAST_QUESTIONS) {
        if Arc::strong_count(&sidecar.asked) > 1 {
            quiet = Instant::now();
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Returns when a drain has nothing left, or no time.
pub async fn drained(sidecar: &Sidecar) {
    emptied(sidecar).await;
    tell_returns(sidecar).await;
    let until = Instant::now() + PASSING_ON;
    loop {
        let left = sidecar.drain().as_ref().map(|drain| drain.left(Instant::now()));
        let (promised, giving) = {
            let registry = sidecar.registry();
            (registry.promised_messages(), registry.is_giving())
        };
        if promised == 0 && !giving {
            return take_leave(sidecar).await;
        }
        if left.is_none_or(|left| left.is_zero()) || Instant::now() >= until {
            if promised > 0 {
                tracing::warn!(messages = promised, "held messages are lost: nobody has taken them");
            }
            return;
        }
        sidecar.messages.misplaced.notify_one();
        tokio::time::sleep(2 * TICK).await;
    }
}

/// Tells the keys' owners who is on its way to them: once this sidecar has ended they could not ask it.
async fn tell_returns(sidecar: &Sidecar) {
    let told = sidecar.registry().tell_returns(sidecar.redis.cuts(), Instant::now());
    let pool_uid = sidecar.view().pool_uid().to_owned();
    let tell = async |owner: &Peer, keys: &[Returning]| {
        let returns = Returns { pool_uid: pool_uid.clone(), keys: keys.to_vec() };
        if let Err(error) = sidecar.peers.tell_returns(owner, &returns).await {
            tracing::debug!(peer = %owner.address, %error, "an owner could not be told who is on its way to it");
        }
    };
    let all = told.iter().flat_map(|(owner, keys)| keys.chunks(Returns::KEYS).map(|keys| tell(owner, keys)));
    stream::iter(all).buffer_unordered(TOLD_AT_ONCE).collect::<()>().await;
}

/// Returns when a drain has no connections left, or no time.
async fn emptied(sidecar: &Sidecar) {
    loop {
        let left = sidecar.drain().as_ref().map(|drain| drain.left(Instant::now()));
        let all = sidecar.registry().all();
        if all == 0 || left.is_none_or(|left| left.is_zero()) {
            tracing::info!(connections_left = all, "drained");
            return;
        }
        tokio::time::sleep(2 * TICK).await;
    }
}

fn evict(sidecar: &Sidecar, due: u64, hurry: bool) {
    let mut registry = sidecar.registry();
    let mut begun = if registry.view().by_load() { registry.evict_idlest(due) } else { 0 };
    while begun < due {
        let now = match registry.evict_next(|_| true, hurry) {
            0 => registry.evict_unkeyed(),
            keyed => keyed,
        };
        if now == 0 {
            break;
        }
        begun += now;
    }
}

fn cut_all(sidecar: &Sidecar) {
    for (_, link) in sidecar.registry().links() {
        link.reset();
    }
}
