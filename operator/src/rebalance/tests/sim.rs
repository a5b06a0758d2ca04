//! A pool in memory: sidecars that obey placements and grants, clients that come back, and a network that delays, repeats
//! and reorders what is sent. Sidecars spend a grant at once, which is the worst that they may do.

use std::collections::BTreeMap;

use ring::placement::Compiled;
use ring::settings::KeySource;
use ring::wire::AppHealth;
use ring::{KeyHash, KeyHasher, Placement};

use super::super::*;
use crate::planner::Role;
use crate::pool::check::Pace as Limits;
use crate::pool::{CheckedPool, Rate};

pub(crate) const STEP: Duration = Duration::from_millis(50);

pub(crate) struct Sim {
    pub(crate) machine: Machine,
    pub(crate) now: Instant,
    began: Instant,
    pub(crate) sidecars: BTreeMap<String, SimSidecar>,
    pub(crate) members: Vec<Member>,
    pub(crate) desired: usize,
    pub(crate) clients: Vec<Client>,
    /// Clients whose number is below this stay away once they are evicted.
    pub(crate) stay_away: usize,
    /// Evictions in all, over time.
    pub(crate) evictions: Vec<(Instant, u64)>,
    /// Connections whose owner changed, summed over all placements, and those that fell back: what has to move.
    pub(crate) must_move: u64,
    /// What the operator saved last.
    pub(crate) saved: Option<Saved>,
    pub(crate) resigned: bool,
    published: Option<Compiled>,
    network: Vec<(Instant, Message)>,
    random: u64,
    ticked: Instant,
    pool: CheckedPool,
}

pub(crate) struct SimSidecar {
    pub(crate) placement: Option<Compiled>,
    pub(crate) hangs: bool,
    pub(crate) seconds_left: Option<u64>,
    pub(crate) app: AppHealth,
    pub(crate) evicted: u64,
    started: u64,
    returned: u64,
    grant: Option<Grant>,
    grant_ends: Instant,
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    name: String,
    key: KeyHash,
    pub(crate) at: At,
    pub(crate) evictions: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum At {
    Sidecar(String),
    Away { back: Option<Instant>, from: Option<String> },
}

#[derive(Clone)]
enum Message {
    Publish(String, Arc<Placement>),
    Grant(Grant),
    Report(Box<Report>),
}

pub(crate) fn pool() -> CheckedPool {
    let key = ring::settings::KeySpec { from: vec![KeySource::Query("user".into())], ..Default::default() };
    CheckedPool {
        name: "chat".into(),
        uid: None,
        replicas: None,
        hasher: KeyHasher::Xxh64,
        settings: Settings { key, ..Settings::default() },
        pace: Limits {
            mode: Mode::Automatic,
            settle: Duration::from_secs(1),
            rate: Rate::PerSecond(50),
            max_in_flight: 60,
            return_timeout: Duration::from_secs(5),
            min_returned: 80,
            tolerance: 10,
            lead: Duration::ZERO,
        },
    }
}

impl Sim {
    pub(crate) fn new(members: usize, clients: usize, seed: u64) -> Self {
        Self::with(pool(), members, clients, seed)
    }

    pub(crate) fn with(pool: CheckedPool, members: usize, clients: usize, seed: u64) -> Self {
        let now = Instant::now();
        let client = |i| Client {
            name: format!("user-{i}"),
            key: KeyHasher::Xxh64.hash(format!("user-{i}").as_bytes()),
            at: At::Away { back: Some(now), from: None },
            evictions: 0,
        };
        let mut sim = Self {
            machine: Machine::new(pool.clone(), "pool-uid", None),
            now,
            began: now,
            sidecars: BTreeMap::new(),
            members: Vec::new(),
            desired: members,
            clients: (0..clients).map(client).collect(),
            stay_away: 0,
            evictions: vec![(now, 0)],
            must_move: 0,
            saved: None,
            resigned: false,
            published: None,
            network: Vec::new(),
            random: seed | 1,
            ticked: now,
            pool,
        };
        for index in 0..members {
            sim.join(&format!("m{index}"));
        }
        sim.settle_down();
        sim.evictions = vec![(sim.now, 0)];
        sim.must_move = 0;
        sim.clients.iter_mut().for_each(|client| client.evictions = 0);
        sim
    }

    pub(crate) fn join(&mut self, name: &str) {
        let uid = format!("{name}-{}", self.chance(1_000_000));
        let sidecar = SimSidecar {
            placement: None,
            hangs: false,
            seconds_left: None,
            app: AppHealth::default(),
            evicted: 0,
            started: 1 + u64::try_from(self.now.duration_since(self.began).as_millis()).unwrap(),
            returned: 0,
            grant: None,
            grant_ends: self.now,
        };
        self.sidecars.insert(uid.clone(), sidecar);
        self.members.retain(|member| member.name != name);
        self.members.push(Member {
            name: name.into(),
            uid: Some(uid),
            address: "127.0.0.1:1".into(),
            weight: 1,
            role: Role::App,
            ordinal: None,
            state: MemberState::Ready,
            silent: false,
        });
        self.tell_members();
    }

    pub(crate) fn leave(&mut self, index: usize) {
        self.set(index, MemberState::Leaving { overdue: false });
    }

    /// A process dies: its clients come back at once, to wherever they belong then.
    pub(crate) fn crash(&mut self, index: usize) {
        let Some(uid) = self.members.get(index).and_then(|m| m.uid.clone()) else { return };
        self.sidecars.remove(&uid);
        let back = Some(self.now + Duration::from_millis(self.chance(1_000)));
        for client in self.clients.iter_mut().filter(|client| client.at == At::Sidecar(uid.clone())) {
            client.at = At::Away { back, from: None };
        }
        self.set(index, MemberState::Dead);
    }

    /// A process dies and is back before anybody calls it dead.
    pub(crate) fn restart(&mut self, index: usize) {
        let uid = self.members[index].uid.clone().unwrap();
        let sidecar = self.sidecars.get_mut(&uid).unwrap();
        sidecar.started += 1 + u64::try_from(self.now.duration_since(self.began).as_millis()).unwrap();
        (sidecar.evicted, sidecar.returned, sidecar.grant, sidecar.hangs) = (0, 0, None, true);
        let back = Some(self.now + STEP);
        for client in self.clients.iter_mut().filter(|client| client.at == At::Sidecar(uid.clone())) {
            client.at = At::Away { back, from: None };
        }
        self.run(STEP * 4);
        self.sidecars.get_mut(&uid).unwrap().hangs = false;
    }

    pub(crate) fn hang(&mut self, index: usize, hangs: bool) {
        let Some(member) = self.members.get_mut(index) else { return };
        let state = match member.state {
            MemberState::Ready | MemberState::Unreachable if hangs => MemberState::Unreachable,
            MemberState::Ready | MemberState::Unreachable => MemberState::Ready,
            leaving @ MemberState::Leaving { .. } => leaving,
            MemberState::Starting | MemberState::Dead => return,
        };
        member.silent = hangs;
        self.sidecars.get_mut(member.uid.as_ref().unwrap()).unwrap().hangs = hangs;
        self.set(index, state);
    }

    pub(crate) fn set(&mut self, index: usize, state: MemberState) {
        if let Some(member) = self.members.get_mut(index) {
            member.state = state;
            self.tell_members();
        }
    }

    pub(crate) fn restart_operator(&mut self) {
        self.network.retain(|(_, message)| !matches!(message, Message::Report(_)));
        self.machine = Machine::new(self.pool.clone(), "pool-uid", self.saved.clone());
        self.tell_members();
    }

    pub(crate) fn tell_members(&mut self) {
        self.step(Event::Members { members: self.members.clone(), desired: self.desired });
    }

    /// A number below `below`.
    pub(crate) fn chance(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.evictions.last().unwrap().1
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.advance();
        }
    }

    /// Runs until the machine is stable and every client is where it belongs; panics after half an hour: a stopped move asks again rarely.
    pub(crate) fn settle_down(&mut self) {
        let end = self.now + Duration::from_secs(1_800);
        self.run(self.pool.pace.settle + Duration::from_secs(2));
        while !self.is_at_rest() {
            assert!(self.now < end, "not at rest after half an hour: {:#?}", self.machine.view(self.now));
            self.advance();
        }
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        let at_home = |client: &Client| match &client.at {
            At::Sidecar(uid) => self.owner(client.key).as_deref() == Some(uid),
            At::Away { .. } => false,
        };
        self.machine.state() == State::Stable
            && !self.machine.saved.is_moving()
            && (self.living().next().is_none() || self.clients.iter().skip(self.stay_away).all(at_home))
    }

    fn living(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.uid.as_ref().is_some_and(|uid| self.sidecars.contains_key(uid)))
    }

    fn newest(&self) -> Option<&Compiled> {
        self.sidecars.values().filter_map(|s| s.placement.as_ref()).max_by_key(|p| p.version())
    }

    fn rightful_owner(&self, key: KeyHash) -> Option<String> {
        let newest = self.newest()?;
        Some(newest.holder(newest.ring().owner(key)?)?.uid.clone())
    }

    /// Where a client of a key gets to: its owner, or its next-best when that cannot be reached.
    fn owner(&self, key: KeyHash) -> Option<String> {
        let newest = self.newest()?;
        let alive = newest.ring().ranked(key).into_iter().filter_map(|slot| newest.holder(slot));
        alive.map(|holder| holder.uid.clone()).find(|uid| self.sidecars.get(uid).is_some_and(|s| !s.hangs))
    }

    fn advance(&mut self) {
        self.now += STEP;
        self.deliver();
        self.bring_clients_back();
        if self.now >= self.ticked + TICK {
            self.ticked = self.now;
            for uid in self.sidecars.keys().cloned().collect::<Vec<_>>() {
                self.report(&uid);
            }
            self.step(Event::Tick);
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let due: Vec<Message> = self.network.extract_if(.., |(at, _)| *at <= now).map(|(_, message)| message).collect();
        for message in due {
            match message {
                Message::Report(report) => self.step(Event::Report(report)),
                Message::Publish(uid, placement) => self.place(&uid, &placement),
                Message::Grant(grant) => self.evict(&grant),
            }
        }
    }

    fn send(&mut self, message: Message) {
        let delay = |sim: &mut Self| sim.now + Duration::from_millis(sim.chance(400));
        if self.chance(8) == 0 {
            let again = (delay(self) + Duration::from_millis(self.chance(2_000)), message.clone());
            self.network.push(again);
        }
        let once = (delay(self), message);
        self.network.push(once);
    }

    fn place(&mut self, uid: &str, placement: &Placement) {
        let Some(sidecar) = self.sidecars.get_mut(uid).filter(|s| !s.hangs) else { return };
        if sidecar.placement.as_ref().is_none_or(|held| held.version() < placement.version) {
            let compiled = placement.clone().compile().expect("the machine publishes valid placements");
            sidecar.placement = Some(compiled);
            sidecar.grant = None;
        }
        self.report(uid);
    }

    fn evict(&mut self, grant: &Grant) {
        let now = self.now;
        let Some(sidecar) = self.sidecars.get_mut(&grant.target).filter(|s| !s.hangs) else { return };
        let Some(placement) = sidecar.placement.clone().filter(|p| p.version() == grant.version) else { return };
        let total = sidecar.grant.as_ref().map_or(0, |held| held.allow_total).max(grant.allow_total);
        sidecar.grant = Some(Grant { allow_total: total, ..grant.clone() });
        sidecar.grant_ends = now + Duration::from_millis(grant.ttl_ms);
        let mut evicted = 0;
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            let owner = placement.ring().owner(client.key);
            let moves = client.at == At::Sidecar(grant.target.clone())
                && owner.is_some_and(|slot| {
                    grant.to.contains(&slot) && placement.holder(slot).is_some_and(|h| h.uid != grant.target)
                });
            let sidecar = self.sidecars.get_mut(&grant.target).unwrap();
            if !moves || sidecar.evicted >= total {
                continue;
            }
            sidecar.evicted += 1;
            evicted += 1;
            let delay = Duration::from_millis(100 + self.chance(900));
            let back = (index >= self.stay_away).then_some(now + delay);
            let client = &mut self.clients[index];
            client.evictions += 1;
            client.at = At::Away { back, from: Some(grant.target.clone()) };
        }
        if evicted > 0 {
            let sum = self.evicted() + evicted;
            self.evictions.push((now, sum));
        }
    }

    fn bring_clients_back(&mut self) {
        for index in 0..self.clients.len() {
            let At::Away { back: Some(back), from } = self.clients[index].at.clone() else { continue };
            if back > self.now {
                continue;
            }
            let key = self.clients[index].key;
            if let Some(owner) = self.owner(key) {
                self.must_move += u64::from(self.rightful_owner(key).as_ref() != Some(&owner));
                let sidecar = self.sidecars.get_mut(&owner).unwrap();
                // A return is seen by the claim: only where the placement says whom to ask.
                let claimed = sidecar.placement.as_ref().zip(from).is_some_and(|(placement, from)| {
                    placement.previous_holders(&self.clients[index].name).iter().any(|holder| holder.uid == from)
                });
                sidecar.returned += u64::from(claimed);
                self.clients[index].at = At::Sidecar(owner);
            }
        }
    }

    fn report(&mut self, uid: &str) {
        let sidecar = &self.sidecars[uid];
        if sidecar.hangs {
            return;
        }
        let mut report = Report {
            uid: uid.to_owned(),
            started: sidecar.started,
            evicted: sidecar.evicted,
            returned: sidecar.returned,
            draining: sidecar.seconds_left.is_some(),
            drain_seconds_left: sidecar.seconds_left,
            app: sidecar.app,
            ..Report::default()
        };
        if let Some(placement) = &sidecar.placement {
            report.pool_uid.clone_from(&placement.placement().pool_uid);
            report.version = placement.version();
            report.slot = placement.slot_of(uid);
        }
        for client in self.clients.iter().filter(|client| client.at == At::Sidecar(uid.to_owned())) {
            report.connections += 1;
            let owner = sidecar.placement.as_ref().and_then(|p| p.ring().owner(client.key));
            if let Some(slot) = owner.filter(|slot| Some(*slot) != report.slot) {
                report.moved += 1;
                report.moved_keys += 1;
                *report.moved_to.entry(slot).or_default() += 1;
            }
        }
        self.send(Message::Report(Box::new(report)));
    }

    fn step(&mut self, event: Event) {
        for action in self.machine.step(event, self.now) {
            match action {
                Action::Save(saved) => {
                    self.saved = Some(*saved);
                    self.count_changes();
                }
                Action::Publish { uid, placement } => self.send(Message::Publish(uid, placement)),
                Action::Grant(grant) => {
                    self.check(&grant);
                    self.send(Message::Grant(grant));
                }
                // Where keys decide nobody asks for them.
                Action::Tell { .. } => {}
                Action::Resign { .. } => self.resigned = true,
            }
        }
    }

    /// A grant names only slots whose holder has the placement.
    fn check(&self, grant: &Grant) {
        for slot in &grant.to {
            let slots = &self.machine.saved.roster.slots;
            let holder = slots.iter().find(|s| s.id == *slot).and_then(|s| s.holder.as_ref()).expect("a held slot");
            let has = self.sidecars.get(&holder.uid).and_then(|s| s.placement.as_ref()).map(Compiled::version);
            assert_eq!(has, Some(grant.version), "slot {slot} is granted before {} has the placement", holder.name);
        }
    }

    /// Counts the connections that a new placement gives to somebody else.
    fn count_changes(&mut self) {
        let Ok(compiled) = self.machine.placement().compile() else { return };
        if let Some(old) = &self.published {
            let owner = |placement: &Compiled, key| {
                let slot = placement.ring().owner(key)?;
                placement.holder(slot).map(|holder| holder.uid.clone())
            };
            let changed = self.clients.iter().filter(|c| owner(old, c.key) != owner(&compiled, c.key));
            self.must_move += u64::try_from(changed.count()).unwrap();
        }
        self.published = Some(compiled);
    }
}
