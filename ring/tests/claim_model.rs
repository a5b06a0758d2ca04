//! The claim protocol in every interleaving, checked with `stateright` on the very functions that sidecars run.
//!
//! Three servers and one key, whose owner changes twice, or three times. Each server learns each version at any time, or
//! skips one. Two to four handshakes of the key may begin at any time, at any server, since an entry may know an old
//! placement: they are two devices, and one or both of them coming back, also while the old connection is still leaving.
//! Connections are evicted in any order whenever their server knows that the key has moved; an eviction is called off
//! when it has moved back; a connection may also close by itself. Where pins are allowed, a server that has a connection
//! may pin the key at any time, and its pin may end at any time.
//!
//! The network keeps every claim and every answer for ever, and may deliver each of them at any time, again and again, or
//! not at all: that is delay, reordering, doubling and loss in one. A lost message is thus one that is not delivered yet,
//! and to deliver it later is the retry. In production, a server that stays silent counts as unreachable and the key is
//! taken without its word; a crash or a partition allows no guarantee, so the model leaves that out, and the fallback too.
//!
//! That every handshake ends is checked from every state: its own steps alone bring it to an end, and few of them. The
//! others can only take finitely many steps that change anything.

use std::collections::BTreeSet;
use std::fmt;

use ring::claim::{Arrival, ClaimAnswer, End, Entry, KeyState, Released, Standing};
use ring::placement::{Predecessor, Table};
use ring::{Holder, Placement, Slot, SlotId, Version};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// How often an entry dials again after a 421, and how often a claimant hears `leaving` before it gives up.
const BUDGET: Budget = Budget { redirects: 2, patience: 2 };
/// More steps than one handshake needs.
const STEPS: usize = 20;

/// The property that all this is for.
const ON_ONE_SERVER: &str = "a key is never on two servers";

const SERVERS: [Server; 3] = [Server(0), Server(1), Server(2)];
const A: Server = SERVERS[0];
const B: Server = SERVERS[1];
const C: Server = SERVERS[2];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Server(u8);

impl Server {
    fn index(self) -> usize {
        usize::from(self.0)
    }

    fn name(self) -> String {
        char::from(b'A' + self.0).to_string()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// An index into [`Protocol::standings`]: 0 is the first placement.
type Known = u8;

/// A mistake, made on purpose, that the model must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// A server forgets what it has promised.
    ForgetsPromises,
    /// An owner takes the key without asking.
    AdmitsWithoutProof,
    /// An owner takes proof from an earlier version for proof.
    TrustsOldProof,
    /// An owner takes one answer for all.
    AsksOnlyOne,
    /// An owner takes `leaving` for `released`.
    TakesLeavingForReleased,
    /// A connection counts as closed as soon as its eviction begins.
    ClosesTooSoon,
    /// A placement lists the last predecessor only, while the one before is still in use.
    ListsOnePredecessor,
    /// The predecessors are dropped while the key is still held by its previous owner.
    DropsPredecessorsTooSoon,
}

/// The owners of the key in succession, and what each server makes of them.
struct Protocol {
    /// By version, then by server.
    standings: Vec<[Standing<Server>; 3]>,
    /// Whether the last version only drops the predecessors, for which the operator waits until nothing is moved.
    last_ends_move: bool,
    /// Whether servers pin the key.
    pins: bool,
    handshakes: usize,
    mistake: Option<Mistake>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    known: [Known; 3],
    keys: [KeyState<Server>; 3],
    /// Sorted, since it does not matter which is which.
    links: Vec<Link>,
    claims: BTreeSet<Claim>,
    answers: BTreeSet<Answer>,
}

/// One handshake, and the connection that comes of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Link {
    New,
    Heading { to: Server, budget: Budget },
    Asking(Ask),
    Held { at: Server },
    Leaving { at: Server },
    Over,
}

/// A handshake that waits at the owner until the previous ones have released the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Ask {
    at: Server,
    under: Known,
    released: BTreeSet<Server>,
    budget: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Budget {
    redirects: u8,
    patience: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Claim {
    under: Known,
    claimant: Server,
    previous: Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Answer {
    claim: Claim,
    says: Says,
}

/// A [`ClaimAnswer`] without its count, which decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Says {
    Held,
    Leaving,
    Released,
    Superseded(Server),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Learn(Server, Known),
    Dial(usize, Server),
    Arrive(usize),
    Deliver(Claim),
    Hear(usize, Answer),
    Evict(usize),
    CallOff(usize),
    Close(usize),
    Pin(Server),
    Unpin(Server),
}

impl Protocol {
    /// Placements with these owners, each listing those before it as predecessors.
    fn new(owners: &[Server], handshakes: usize) -> Self {
        let standings = (0..owners.len()).map(|newest| standings(owners, 0, newest)).collect();
        Self { standings, last_ends_move: false, pins: false, handshakes, mistake: None }
    }

    /// The same, but the last placement lists no predecessors.
    fn that_ends(owners: &[Server], handshakes: usize) -> Self {
        let mut protocol = Self::new(owners, handshakes);
        let newest = owners.len() - 1;
        protocol.standings[newest] = standings(owners, newest, newest);
        Self { last_ends_move: true, ..protocol }
    }

    /// The same with pins.
    fn with_pins(self) -> Self {
        Self { pins: true, ..self }
    }

    fn with(mut self, mistake: Mistake) -> Self {
        if mistake == Mistake::ListsOnePredecessor {
            self.standings[2] = standings(&[A, B, C], 1, 2);
        }
        Self { mistake: Some(mistake), ..self }
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn standing(&self, state: &State, server: Server) -> &Standing<Server> {
        &self.standings[usize::from(state.known[server.index()])][server.index()]
    }

    fn newest(&self) -> Known {
        Known::try_from(self.standings.len() - 1).expect("a few versions")
    }

    /// The operator waits for this before it drops the predecessors: all know the last table but one, and nothing that
    /// has moved under it is held anywhere.
    fn may_end_move(&self, state: &State) -> bool {
        let published = state.known.contains(&self.newest());
        published
            || self.makes(Mistake::DropsPredecessorsTooSoon)
            || SERVERS.iter().all(|&server| {
                let key = &state.keys[server.index()];
                let moved_here = !self.standing(state, server).mine && (key.connections() > 0 || key.is_pinned());
                state.known[server.index()] == self.newest() - 1 && !moved_here
            })
    }

    /// The claims whose answers a handshake still waits for.
    fn missing(&self, ask: &Ask) -> impl Iterator<Item = Claim> {
        let Ask { at, under, released, .. } = ask;
        let previous = self.standings[usize::from(*under)][at.index()].previous.iter();
        let missing = previous.filter(|server| !released.contains(server));
        missing.map(|&previous| Claim { under: *under, claimant: *at, previous })
    }

    /// A handshake reaches a server, perhaps with proof.
    fn enter(&self, state: &mut State, at: Server, budget: Budget, proof: Option<Known>) -> Link {
        let standing = self.standing(state, at);
        let under = state.known[at.index()];
        let proof = match self.mistake {
            Some(Mistake::AdmitsWithoutProof) => Some(under),
            Some(Mistake::TrustsOldProof) => proof.map(|_| under),
            _ => proof,
        };
        let proof = proof.map(|under| Released(self.standings[usize::from(under)][at.index()].version));
        match state.keys[at.index()].enter(standing, Arrival::Owner, proof.as_ref()) {
            Entry::Admit => Link::Held { at },
            Entry::Redirect(to) => budget.redirect(to),
            Entry::Nobody => Link::Over,
            Entry::Claim(peers) => {
                state.claims.extend(peers.into_iter().map(|previous| Claim { under, claimant: at, previous }));
                Link::Asking(Ask { at, under, released: BTreeSet::new(), budget })
            }
        }
    }

    /// A claimant hears an answer on behalf of one of its handshakes.
    fn hear(&self, state: &mut State, mut ask: Ask, answer: Answer) -> Link {
        match answer.says {
            Says::Held => ask.budget.redirect(answer.claim.previous),
            Says::Superseded(owner) => ask.budget.redirect(owner),
            Says::Leaving if !self.makes(Mistake::TakesLeavingForReleased) => {
                ask.budget.patience -= 1;
                if ask.budget.patience == 0 { Link::Over } else { Link::Asking(ask) }
            }
            Says::Leaving | Says::Released => {
                ask.released.insert(answer.claim.previous);
                if self.missing(&ask).next().is_none() || self.makes(Mistake::AsksOnlyOne) {
                    return self.enter(state, ask.at, ask.budget, Some(ask.under));
                }
                Link::Asking(ask)
            }
        }
    }

    /// A previous owner answers.
    fn answer(&self, state: &mut State, claim: Claim) -> Answer {
        let standing = self.standing(state, claim.previous);
        let version = self.standings[usize::from(claim.under)][claim.claimant.index()].version;
        let key = &mut state.keys[claim.previous.index()];
        let says = match key.claim(standing, version, &claim.claimant) {
            ClaimAnswer::Held => Says::Held,
            ClaimAnswer::Leaving => Says::Leaving,
            ClaimAnswer::Released { .. } => Says::Released,
            ClaimAnswer::Superseded { owner } => Says::Superseded(owner),
        };
        if self.makes(Mistake::ForgetsPromises) && key.connections() == 0 {
            *key = KeyState::default();
        }
        Answer { claim, says }
    }

    /// What sidecars do after every step.
    fn forget(&self, state: &mut State) {
        for server in SERVERS {
            let Standing { version, previous, .. } = self.standing(state, server);
            let key = &mut state.keys[server.index()];
            if !key.settle(*version, !previous.is_empty()) {
                *key = KeyState::default();
            }
        }
    }

    /// How a handshake ends when nothing else happens; `None` if it does not.
    fn end_alone(&self, mut state: State, mut link: Link) -> Option<Link> {
        for _ in 0..STEPS {
            link = match link {
                Link::Heading { to, budget } => self.enter(&mut state, to, budget, None),
                Link::Asking(ask) => {
                    let claim = self.missing(&ask).find(|claim| state.claims.contains(claim))?;
                    let answer = self.answer(&mut state, claim);
                    self.hear(&mut state, ask, answer)
                }
                Link::New | Link::Held { .. } | Link::Leaving { .. } | Link::Over => return Some(link),
            };
        }
        None
    }
}

impl Budget {
    fn redirect(self, to: Server) -> Link {
        match self.redirects {
            0 => Link::Over,
            left => Link::Heading { to, budget: Self { redirects: left - 1, ..self } },
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            known: [0; 3],
            keys: Default::default(),
            links: vec![Link::New; self.handshakes],
            claims: BTreeSet::new(),
            answers: BTreeSet::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for server in SERVERS {
            let newer = state.known[server.index()] + 1..=self.newest();
            let published = |known: &Known| !self.last_ends_move || *known < self.newest() || self.may_end_move(state);
            actions.extend(newer.filter(published).map(|known| Action::Learn(server, known)));
        }
        actions.extend(state.claims.iter().map(|claim| Action::Deliver(*claim)));
        for server in SERVERS {
            let key = &state.keys[server.index()];
            match key.is_pinned() {
                true => actions.push(Action::Unpin(server)),
                false if self.pins && key.connections() > 0 => actions.push(Action::Pin(server)),
                false => {}
            }
        }
        for (i, link) in state.links.iter().enumerate() {
            if i > 0 && *link == state.links[i - 1] {
                continue; // The same link again.
            }
            match link {
                Link::New => actions.extend(SERVERS.map(|server| Action::Dial(i, server))),
                Link::Heading { .. } => actions.push(Action::Arrive(i)),
                Link::Asking(ask) => {
                    let missing: Vec<Claim> = self.missing(ask).collect();
                    let expected = state.answers.iter().filter(|answer| missing.contains(&answer.claim));
                    actions.extend(expected.map(|answer| Action::Hear(i, *answer)));
                }
                Link::Held { at } => {
                    actions.push(Action::Close(i));
                    if !self.standing(state, *at).mine && !state.keys[at.index()].is_pinned() {
                        actions.push(Action::Evict(i));
                    }
                }
                Link::Leaving { at } => {
                    actions.push(Action::Close(i));
                    if self.standing(state, *at).mine || state.keys[at.index()].is_pinned() {
                        actions.push(Action::CallOff(i));
                    }
                }
                Link::Over => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Learn(server, known) => state.known[server.index()] = known,
            Action::Dial(i, to) => state.links[i] = Link::Heading { to, budget: BUDGET },
            Action::Arrive(i) => {
                let Link::Heading { to, budget } = last.links[i] else { return None };
                state.links[i] = self.enter(&mut state, to, budget, None);
            }
            Action::Deliver(claim) => {
                let answer = self.answer(&mut state, claim);
                state.answers.insert(answer);
            }
            Action::Hear(i, answer) => {
                let Link::Asking(ask) = last.links[i].clone() else { return None };
                state.links[i] = self.hear(&mut state, ask, answer);
            }
            Action::Evict(i) => {
                let Link::Held { at } = last.links[i] else { return None };
                let key = &mut state.keys[at.index()];
                key.leave();
                state.links[i] = Link::Leaving { at };
                if self.makes(Mistake::ClosesTooSoon) {
                    key.close(End::Evicted);
                }
            }
            Action::CallOff(i) => {
                let Link::Leaving { at } = last.links[i] else { return None };
                state.keys[at.index()].stay();
                state.links[i] = Link::Held { at };
            }
            Action::Close(i) => {
                let (at, end) = match last.links[i] {
                    Link::Held { at } => (at, End::Other),
                    Link::Leaving { at } => (at, End::Evicted),
                    _ => return None,
                };
                if !(self.makes(Mistake::ClosesTooSoon) && end == End::Evicted) {
                    state.keys[at.index()].close(end);
                }
                state.links[i] = Link::Over;
            }
            Action::Pin(server) => {
                state.keys[server.index()].pin();
            }
            Action::Unpin(server) => state.keys[server.index()].unpin(),
        }
        self.forget(&mut state);
        state.links.sort_unstable();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ON_ONE_SERVER, |_, state: &State| state.servers_with_the_key().count() <= 1),
            Property::always("every connection is counted where it is", Self::counts_connections),
            Property::always("every handshake ends", Self::lets_every_handshake_end),
            Property::always("when all know the newest placement, it is admitted", Self::admits_when_all_know),
            Property::sometimes("the key reaches its last owner", Self::reaches_last_owner),
            Property::sometimes("a device joins where the key is still held", Self::joins_where_still_held),
            Property::sometimes("a device comes back while it is leaving", |_, state: &State| {
                state.has(|link| matches!(link, Link::Leaving { .. }))
                    && state.has(|link| matches!(link, Link::Asking(_)))
            }),
        ]
    }
}

impl Protocol {
    fn counts_connections(&self, state: &State) -> bool {
        SERVERS.iter().all(|&at| {
            let count = |link: &Link| state.links.iter().filter(|l| *l == link).count();
            let (held, leaving) = (count(&Link::Held { at }), count(&Link::Leaving { at }));
            let key = &state.keys[at.index()];
            self.makes(Mistake::ClosesTooSoon)
                || (key.staying() as usize == held && key.connections() as usize == held + leaving)
        })
    }

    fn lets_every_handshake_end(&self, state: &State) -> bool {
        state.links.iter().all(|link| self.end_alone(state.clone(), link.clone()).is_some())
    }

    /// With nothing left to learn and nothing leaving, no handshake runs out of redirects.
    fn admits_when_all_know(&self, state: &State) -> bool {
        let settled = !state.has(|link| matches!(link, Link::Leaving { .. })) && state.known == [self.newest(); 3];
        let admitted = |to| {
            let end = self.end_alone(state.clone(), Link::Heading { to, budget: BUDGET });
            matches!(end, Some(Link::Held { .. }))
        };
        !settled || SERVERS.into_iter().all(admitted)
    }

    fn reaches_last_owner(&self, state: &State) -> bool {
        state.known == [self.newest(); 3]
            && state.servers_with_the_key().any(|server| self.standing(state, server).mine)
    }

    fn joins_where_still_held(&self, state: &State) -> bool {
        let held = |at| state.links.iter().filter(|link| **link == Link::Held { at }).count();
        SERVERS.iter().any(|&server| held(server) == 2 && !self.standing(state, server).mine)
    }
}

impl State {
    /// Servers where a connection of the key reaches the app, or may yet, as the connections themselves tell it; and
    /// those whose app relies on the key's being there.
    fn servers_with_the_key(&self) -> impl Iterator<Item = Server> {
        let here =
            |server| move |link: &Link| matches!(link, Link::Held { at } | Link::Leaving { at } if *at == server);
        SERVERS.into_iter().filter(move |server| self.keys[server.index()].is_pinned() || self.has(here(*server)))
    }

    fn has(&self, what: impl FnMut(&Link) -> bool) -> bool {
        self.links.iter().any(what)
    }
}

/// One slot is enough: the key moves when its holder changes.
fn slot_of(owner: Server) -> Slot {
    let holder = Holder { name: owner.name(), uid: owner.name(), address: format!("{}:7480", owner.name()) };
    Slot { id: SlotId(0), weight: 1, holder: Some(holder.into()) }
}

fn version(index: usize) -> Version {
    let epoch = index as u64 + 1;
    Version { term: 1 + epoch / 3, epoch } // A new leader publishes the third.
}

/// What each server makes of the placement that names the owner `newest`, with those from `oldest` on as predecessors.
fn standings(owners: &[Server], oldest: usize, newest: usize) -> [Standing<Server>; 3] {
    let table = |index: usize| Table { slots: vec![slot_of(owners[index])], ..Table::default() };
    let predecessors = (oldest..newest).rev().map(|i| Predecessor { version: version(i), table: table(i) }).collect();
    let placement = Placement {
        pool_uid: "pool".into(),
        version: version(newest),
        table: table(newest),
        predecessors,
        ..Placement::default()
    };
    let placement = placement.compile().expect("a placement that is right");
    let server = |holder: &Holder| *SERVERS.iter().find(|s| s.name() == holder.uid).expect("one of three");
    let owner = server(placement.holder(SlotId(0)).expect("a holder"));
    SERVERS.map(|asks| Standing {
        version: placement.version(),
        owner: Some(owner),
        mine: owner == asks,
        previous: placement.previous_holders("key").into_iter().map(server).collect(),
    })
}

fn check(name: &str, protocol: Protocol) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} unique states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn a_key_that_moves_on_before_it_has_arrived_is_never_on_two_servers() {
    check("A, B, C", Protocol::new(&[A, B, C], 3));
}

#[test]
fn a_key_that_moves_back_is_never_on_two_servers() {
    check("A, B, A", Protocol::new(&[A, B, A], 4));
}

#[test]
fn a_key_that_moves_while_others_move_again_is_never_on_two_servers() {
    check("A, B, B", Protocol::new(&[A, B, B], 4));
}

#[test]
fn a_key_that_moves_to_and_fro_is_never_on_two_servers() {
    check("A, B, A, B", Protocol::new(&[A, B, A, B], 2));
}

#[test]
fn a_move_may_end_as_soon_as_no_moved_key_is_held() {
    check("A, B, end", Protocol::that_ends(&[A, B, B], 4));
}

#[test]
fn a_pinned_key_is_never_on_two_servers() {
    check("A, B, C, pinned", Protocol::new(&[A, B, C], 2).with_pins());
    check("A, B, A, pinned", Protocol::new(&[A, B, A], 3).with_pins());
    check("A, B, end, pinned", Protocol::that_ends(&[A, B, B], 3).with_pins());
}

#[test]
fn every_mistake_puts_a_key_on_two_servers() {
    let twice = |mistake| Protocol::new(&[A, B, C], 2).with(mistake);
    let to_and_fro = |mistake| Protocol::new(&[A, B, A, B], 2).with(mistake);
    let ended = |mistake| Protocol::that_ends(&[A, B, B], 2).with(mistake);
    for protocol in [
        twice(Mistake::ForgetsPromises),
        twice(Mistake::AdmitsWithoutProof),
        to_and_fro(Mistake::TrustsOldProof),
        twice(Mistake::AsksOnlyOne),
        twice(Mistake::TakesLeavingForReleased),
        twice(Mistake::ClosesTooSoon),
        twice(Mistake::ListsOnePredecessor),
        ended(Mistake::DropsPredecessorsTooSoon),
    ] {
        let mistake = protocol.mistake;
        let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        assert!(checker.discovery(ON_ONE_SERVER).is_some(), "{mistake:?} went unnoticed");
    }
}
