//! Whether a handshake goes to the app here, to a peer, or nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use rand::seq::IndexedRandom as _;
use ring::Holder;
use ring::claim::{Arrival, ClaimAnswer, Released};
use ring::wire::{Claim, ClaimReply, Peer, Returning};

use crate::peers::{LEAVING_WAIT, PeerError};
use crate::registry::{Admission, ConnectionId, Seat};
use crate::relay::Link;
use crate::sessions::Visit;
use crate::sidecar::Sidecar;
use crate::view::View;

/// How long to wait for a placement that a peer has and this sidecar has not: the operator tells all of them at once.
pub const PLACEMENT_WAIT: Duration = Duration::from_millis(50);

/// How often a peer may send a request on.
pub const REDIRECTS: u32 = 2;

/// How long a previous owner may need to learn that this sidecar is of its pool. Without a secret it knows its peers from
/// its placement.
const STRANGER_WAIT: Duration = Duration::from_secs(1);

/// The outcome of an admission.
#[derive(Debug)]
pub enum Decision {
    /// To the app here.
    Here(Place),
    /// To this peer.
    There(Peer),
    /// To nobody.
    Refused(Refusal),
}

/// A place at the app here, for a connection that is being set up. Given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    sidecar: Arc<Sidecar>,
    /// `None` for a connection without a key, and once registered.
    seat: Option<Seat>,
    /// The session that its request belongs to, which has a place already.
    visit: Option<Visit>,
    trusted: bool,
}

/// Why a handshake was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No slot has a holder.
    #[error("no server is ready in this pool")]
    NoHolder,
    /// The key's previous owner did not let go of it in time.
    #[error("this key is moving; try again in a moment")]
    StillLeaving,
    /// `limits.perKey`.
    #[error("this key has as many connections as limits.perKey allows")]
    KeyFull,
    /// `limits.connections`.
    #[error("this server has as many connections as limits.connections allows")]
    Full,
    /// `limits.handshakesPerSecond`.
    #[error("too many handshakes wait for their turn; try again in a moment")]
    QueueFull,
    /// `ownerUnreachable: Reject`, or nobody could be reached.
    #[error("the server of this key cannot be reached; try again in a moment")]
    Unreachable,
    /// `key.missing: Reject`.
    #[error("this pool needs a key in the handshake, and none of its sources (key.from) has one")]
    KeyMissing,
}

impl Refusal {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::KeyMissing => StatusCode::BAD_REQUEST,
            Self::KeyFull => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoHolder => "no_holder",
            Self::StillLeaving => "still_leaving",
            Self::KeyFull => "key_full",
            Self::Full => "full",
            Self::QueueFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::KeyMissing => "key_missing",
        }
    }
}

impl Place {
    /// A place for a connection without a key.
    pub fn keyless(sidecar: &Arc<Sidecar>) -> Self {
        Self::of(sidecar, None)
    }

    fn of(sidecar: &Arc<Sidecar>, seat: Option<Seat>) -> Self {
        Self { sidecar: Arc::clone(sidecar), seat, visit: None, trusted: false }
    }

    /// The place of a session that is held here.
    pub fn visiting(sidecar: &Arc<Sidecar>, visit: Visit) -> Self {
        let mut place = Self::keyless(sidecar);
        place.visit = Some(visit);
        place
    }

    /// Where it is.
    pub fn sidecar(&self) -> &Arc<Sidecar> {
        &self.sidecar
    }

    /// The same place, for a connection whose key proves who the client is, or does not.
    #[must_use]
    pub fn trusted(mut self, trusted: bool) -> Self {
        self.trusted = trusted;
        self
    }

    /// The app has accepted: the connection is held from now on.
    pub fn register(mut self, link: Arc<Link>) -> ConnectionId {
        let session = self.visit.as_ref().and_then(Visit::take_over);
        let mut registry = self.sidecar.registry();
        if let Some(id) = session {
            let returned = registry.adopt(id, link, self.trusted);
            self.sidecar.metrics.messages_returned(returned);
            return id;
        }
        let (id, returned) = match self.seat.take() {
            Some(seat) => registry.register(&seat, link, self.trusted),
            None => (registry.register_keyless(link, self.trusted), 0),
        };
        self.sidecar.metrics.messages_returned(returned);
        id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.sidecar.registry().vacate(&seat);
            self.sidecar.released.notify_waiters();
        }
    }
}

/// Decides about a request. `from_peer`: another sidecar has chosen this one. Where load decides a key says nothing.
pub async fn decide(
    sidecar: &Arc<Sidecar>,
    view: &View,
    key: Option<&str>,
    arrival: Arrival,
    from_peer: bool,
) -> Decision {
    match key {
        Some(key) if !view.by_load() => admit(sidecar, key, arrival).await,
        _ if from_peer => Decision::Here(Place::keyless(sidecar)),
        _ => spread(sidecar, view),
    }
}

/// Decides about a handshake that yielded a key.
pub async fn admit(sidecar: &Arc<Sidecar>, key: &str, arrival: Arrival) -> Decision {
    let deadline = Instant::now() + LEAVING_WAIT;
    let mut proof = None;
    loop {
        let (admission, view) = {
            let mut registry = sidecar.registry();
            let admission = match registry.enter(key, arrival, proof.as_ref()) {
                Admission::Unplaced => Admission::Seated(registry.seat_unplaced(key)),
                other => other,
            };
            (admission, Arc::clone(registry.view()))
        };
        let previous = match admission {
            Admission::Seated(seat) => {
                return Decision::Here(Place::of(sidecar, Some(seat)));
            }
            Admission::Redirect(owner) => return Decision::There(owner),
            Admission::Nobody | Admission::Unplaced => return Decision::Refused(Refusal::NoHolder),
            Admission::KeyFull => return Decision::Refused(Refusal::KeyFull),
            Admission::Claim(previous) => previous,
        };
        let turn = match sidecar.claims.begin(key) {
            Ok(turn) => turn,
            Err(ended) => {
                // What came of it is known then.
                let _ = tokio::time::timeout_at(deadline.into(), ended).await;
                if Instant::now() > deadline {
                    return Decision::Refused(Refusal::StillLeaving);
                }
                continue;
            }
        };
        let claimed = claim_from_all(sidecar, &view, key, &previous, deadline).await;
        drop(turn);
        match claimed {
            Claimed::Released(version) => proof = Some(version),
            Claimed::At(peer) if peer.uid != view.me.uid => return Decision::There(peer),
            // Somebody knows a newer placement, under which the key is ours: it is on its way here.
            Claimed::At(_) => tokio::time::sleep(PLACEMENT_WAIT).await,
            Claimed::StillLeaving => return Decision::Refused(Refusal::StillLeaving),
        }
        if Instant::now() > deadline {
            return Decision::Refused(Refusal::StillLeaving);
        }
    }
}

/// Where a connection without a key goes: here, or from a router or a draining sidecar to any holder that can be
/// reached.
pub fn spread(sidecar: &Arc<Sidecar>, view: &View) -> Decision {
    let leaving = view.draining.contains(&view.me.uid);
    if !sidecar.config.is_router() && !leaving {
        return Decision::Here(Place::keyless(sidecar));
    }
    any_holder(sidecar, view)
}

/// Where a client's connection goes when load decides. One that was sent to the address of this slot was told to come here:
/// it has been decided about, unless this slot takes none meanwhile.
pub fn by_load(sidecar: &Arc<Sidecar>, view: &View, host: &str, target: &str) -> Decision {
    let gateway = view.settings().gateway.as_ref().zip(view.slot);
    let stays = gateway.is_some_and(|(gateway, slot)| {
        let takes = || sidecar.tally().takes(slot, view.version(), Instant::now());
        gateway.is_address_of(slot, host, target) && takes()
    });
    if stays && !view.is_emptied() {
        return Decision::Here(Place::keyless(sidecar));
    }
    balance(sidecar, view, &[])
}

/// Where a connection goes when load decides: to the less loaded of two slots. Holders that a handshake has been to are
/// passed over.
pub fn balance(sidecar: &Arc<Sidecar>, view: &View, passed_over: &[String]) -> Decision {
    let Some(placement) = &view.placement else { return Decision::Here(Place::keyless(sidecar)) };
    let is_able = |holder: &Holder| {
        let uid = &holder.uid;
        !view.draining.contains(uid) && !passed_over.contains(uid) && !sidecar.peers.is_suspect(uid)
    };
    let slots = placement.placement().table.slots.iter();
    let able = slots.filter(|slot| slot.holder.as_deref().is_some_and(is_able));
    let able: Vec<_> = able.map(|slot| (slot.id, slot.weight)).collect();
    let below = |below| rand::random_range(0..below);
    let limit = u64::from(view.settings().limits.connections);
    let chosen = sidecar.tally().choose(&able, limit, placement.version(), Instant::now(), below);
    match chosen.and_then(|slot| placement.holder(slot)) {
        Some(holder) if holder.uid == view.me.uid => Decision::Here(Place::keyless(sidecar)),
        Some(holder) => Decision::There(crate::view::peer(holder)),
        None => Decision::Refused(Refusal::NoHolder),
    }
}

/// Any other sidecar that holds a slot, is not leaving, and can be reached.
pub fn any_holder(sidecar: &Sidecar, view: &View) -> Decision {
    let Some(placement) = &view.placement else { return Decision::Refused(Refusal::NoHolder) };
    let holders = placement.holders().map(crate::view::peer);
    let able: Vec<Peer> = holders
        .filter(|peer| !view.draining.contains(&peer.uid) && !sidecar.peers.is_suspect(&peer.uid))
        .filter(|peer| peer.uid != view.me.uid)
        .collect();
    match able.choose(&mut rand::rng()) {
        Some(peer) => Decision::There(peer.clone()),
        None => Decision::Refused(Refusal::NoHolder),
    }
}

enum Claimed {
    /// By all of them.
    Released(Released),
    /// The key is there.
    At(Peer),
    /// Somebody's last connections took too long to leave.
    StillLeaving,
}

async fn claim_from_all(
    sidecar: &Arc<Sidecar>,
    view: &View,
    key: &str,
    previous: &[Peer],
    deadline: Instant,
) -> Claimed {
    // Messages for the key wait meanwhile: only the answers say how many connections are on their way here.
    let _change = Change::begin(sidecar, key);
    let claim = Claim {
        key: key.to_owned(),
        version: view.version(),
        pool_uid: view.pool_uid().to_owned(),
        claimant: view.me.clone(),
        wait_ms: 0,
        hears: sidecar.redis.cuts(),
    };
    let answers = join_all(previous.iter().map(|peer| claim_from(sidecar, claim.clone(), peer, deadline))).await;
    let (mut away, mut receivers, mut marker) = (0, 0, None);
    let mut outcome = Claimed::Released(Released(view.version()));
    for (peer, reply) in previous.iter().zip(answers) {
        marker = marker.or(reply.marker);
        match reply.answer {
            ClaimAnswer::Released { away: evicted, receivers: known } => {
                away += evicted;
                // Who does not know them apart waits for all.
                receivers += known.unwrap_or(evicted);
            }
            ClaimAnswer::Held => outcome = Claimed::At(peer.clone()),
            ClaimAnswer::Superseded { owner } => outcome = Claimed::At(owner),
            ClaimAnswer::Leaving if !matches!(outcome, Claimed::At(_)) => outcome = Claimed::StillLeaving,
            ClaimAnswer::Leaving => {}
        }
    }
    let returning = Returning { key: claim.key, away, receivers, marker };
    sidecar.registry().await_returning(returning, Instant::now());
    outcome
}

/// What is known of a key is about to change.
struct Change<'a> {
    sidecar: &'a Sidecar,
    key: &'a str,
}

impl<'a> Change<'a> {
    fn begin(sidecar: &'a Sidecar, key: &'a str) -> Self {
        sidecar.registry().begin_change(key);
        Self { sidecar, key }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.sidecar.registry().end_change(self.key);
        self.sidecar.released.notify_waiters();
    }
}

/// Claims a key from one previous owner, and waits while its last connections leave. One that cannot be reached counts
/// as having released: a crash allows no guarantee, and its clients need a server.
async fn claim_from(sidecar: &Sidecar, mut claim: Claim, peer: &Peer, deadline: Instant) -> ClaimReply {
    let without_more = |answer| ClaimReply { answer, marker: None };
    let until_known = Instant::now() + STRANGER_WAIT;
    loop {
        match sidecar.peers.claim(peer, &claim).await {
            Ok(ClaimReply { answer: ClaimAnswer::Leaving, .. }) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left < Duration::from_millis(1) {
                    return without_more(ClaimAnswer::Leaving);
                }
                claim.wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            }
            Ok(answer) => return answer,
            Err(PeerError::Refused(StatusCode::FORBIDDEN)) if Instant::now() < until_known => {
                tokio::time::sleep(PLACEMENT_WAIT).await;
            }
            Err(error) => {
                tracing::debug!(peer = %peer.address, %error, "a previous owner gave no answer: its keys are taken");
                sidecar.metrics.claims_unanswered.inc();
                return without_more(ClaimAnswer::Released { away: 0, receivers: None });
            }
        }
    }
}

/// Answers a peer's claim, after a wait if its last connections are leaving. `None` when it is for another pool.
pub async fn answer_claim(sidecar: &Arc<Sidecar>, claim: &Claim) -> Option<ClaimReply> {
    let deadline = Instant::now() + Duration::from_millis(claim.wait_ms).min(LEAVING_WAIT);
    loop {
        let released = sidecar.released.notified();
        tokio::pin!(released);
        released.as_mut().enable();
        let listens = sidecar.redis.cuts();
        let reply = {
            let mut registry = sidecar.registry();
            if registry.view().pool_uid() != claim.pool_uid {
                return None;
            }
            registry.claim(claim, listens, Instant::now())?
        };
        if reply.answer != ClaimAnswer::Leaving || Instant::now() >= deadline {
            return Some(reply);
        }
        // Whether it was released or the time is up, the key is looked at once more.
        let _ = tokio::time::timeout_at(deadline.into(), released).await;
    }
}
