//! What an act has shown: pure functions over what the clients saw and the slots that the operator published.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use ring::rendezvous::Rendezvous;
use ring::{KeyHash, KeyHasher, SlotId};

use super::ledger::{Event, Places, Server, What};

/// How many offenders a problem names.
const NAMED: usize = 3;

/// The key of a client: what it puts into `?user=`.
pub fn key(client: usize) -> String {
    format!("user-{client}")
}

/// Which server owns which key, under one set of slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    ring: Rendezvous,
    holders: BTreeMap<SlotId, Server>,
}

impl Owners {
    /// From slots and the members that hold them.
    pub fn new(holders: BTreeMap<SlotId, Server>) -> Self {
        Self { ring: Rendezvous::new(holders.keys().map(|slot| (*slot, 1))), holders }
    }

    /// The same without the slot of a server: where its keys go while it is gone.
    #[must_use]
    pub fn without(&self, server: &str) -> Self {
        Self::new(self.holders.iter().filter(|(_, s)| ***s != *server).map(|(slot, s)| (*slot, s.clone())).collect())
    }

    /// The server that owns a client's key.
    pub fn of(&self, client: usize) -> Option<&Server> {
        let hash: KeyHash = KeyHasher::default().hash(key(client).as_bytes());
        self.holders.get(&self.ring.owner(hash)?)
    }

    /// Whether every client is at its owner.
    pub fn agree_with(&self, places: &Places) -> bool {
        places.iter().enumerate().all(|(client, place)| place.is_some() && place.as_ref() == self.of(client))
    }

    /// The servers, in the order of their slots.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.holders.values()
    }
}

/// What happened to each client since a mark.
#[derive(Clone, Debug)]
pub struct Tally {
    /// One for each client.
    pub fates: Vec<Fate>,
    /// The most arrivals within any 100 ms.
    pub peak_per_100ms: usize,
    /// Losses of connections in each second since the mark.
    pub breaks_per_second: Vec<u64>,
    /// Losses in the last second before `now`.
    pub breaks_last_second: usize,
    /// How many of the losses a close frame had announced.
    pub announced: usize,
    /// The clients that arrived, in order.
    pub arrivals: Vec<usize>,
}

/// What happened to one client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// The servers it was on, in order; the one at the mark first.
    pub route: Vec<Server>,
    /// How often it lost its connection.
    pub breaks: usize,
    /// Where it is now.
    pub place: Option<Server>,
}

impl Tally {
    /// Counts what was seen since a mark. `events` are in order.
    pub fn of(places: &Places, events: &[Event], since: Instant, now: Instant) -> Self {
        let mut fates: Vec<Fate> = places
            .iter()
            .map(|place| Fate { route: place.iter().cloned().collect(), breaks: 0, place: place.clone() })
            .collect();
        let mut recent: VecDeque<Instant> = VecDeque::new();
        let mut tally = Self {
            fates: Vec::new(),
            peak_per_100ms: 0,
            breaks_per_second: Vec::new(),
            breaks_last_second: 0,
            announced: 0,
            arrivals: Vec::new(),
        };
        for event in events {
            let fate = &mut fates[event.client];
            match &event.what {
                What::Arrived(server) => {
                    fate.route.push(server.clone());
                    fate.place = Some(server.clone());
                    tally.arrivals.push(event.client);
                    recent.push_back(event.at);
                    while recent.front().is_some_and(|at| event.at.duration_since(*at) >= Duration::from_millis(100)) {
                        recent.pop_front();
                    }
                    tally.peak_per_100ms = tally.peak_per_100ms.max(recent.len());
                }
                What::Left(code) => {
                    fate.breaks += 1;
                    fate.place = None;
                    tally.announced += usize::from(code.is_some());
                    tally.breaks_last_second += usize::from(now.duration_since(event.at) < Duration::from_secs(1));
                    let second = usize::try_from(event.at.duration_since(since).as_secs()).unwrap_or(0);
                    tally.breaks_per_second.resize(tally.breaks_per_second.len().max(second + 1), 0);
                    tally.breaks_per_second[second] += 1;
                }
            }
        }
        Self { fates, ..tally }
    }

    /// Clients that lost their connection at least once.
    pub fn broken(&self) -> usize {
        self.fates.iter().filter(|fate| fate.breaks > 0).count()
    }

    /// How many clients each server has.
    pub fn balance(&self) -> BTreeMap<Server, usize> {
        let mut balance = BTreeMap::new();
        for server in self.fates.iter().filter_map(|fate| fate.place.as_ref()) {
            *balance.entry(Server::clone(server)).or_default() += 1;
        }
        balance
    }

    /// Who moved: the client and its last two servers, the latest first.
    pub fn movers(&self) -> impl Iterator<Item = (usize, &Server, &Server)> {
        self.arrivals.iter().rev().filter_map(|client| match self.fates[*client].route.as_slice() {
            [.., from, to] => Some((*client, from, to)),
            _ => None,
        })
    }

    /// Clients that are on no server.
    pub fn away(&self) -> usize {
        self.fates.iter().filter(|fate| fate.place.is_none()).count()
    }
}

/// What an act under wspool has shown.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The act's name.
    pub act: &'static str,
    /// All clients.
    pub connections: usize,
    /// Clients whose connection was broken.
    pub moved: usize,
    /// Clients whose connection was not.
    pub untouched: usize,
    /// Breaks beyond the minimum: of a client that had to stay, or of one that was broken more often than it had to be.
    pub needless: usize,
    /// Clients that had to move and are where they belong.
    pub returned: usize,
    /// Clients that are not where they belong.
    pub lost: usize,
    /// The most reconnects within any 100 ms.
    pub peak_per_100ms: usize,
    /// From the change until everyone was where they belong.
    pub took: Duration,
    /// Clients per server at the end, in the order of the slots.
    pub balance: Vec<usize>,
    /// What should not have been, in words. Empty when the act showed what it should.
    pub problems: Vec<String>,
}

impl Verdict {
    /// Judges an act. `stages` are the owners before it, after each of its changes, and at its end: they give the route
    /// that each client had to take.
    pub fn of(act: &'static str, stages: &[Owners], tally: &Tally, took: Duration) -> Self {
        let counted = tally.balance();
        let servers = stages.last().into_iter().flat_map(Owners::servers);
        let mut verdict = Self {
            act,
            connections: tally.fates.len(),
            moved: tally.broken(),
            untouched: tally.fates.len() - tally.broken(),
            needless: 0,
            returned: 0,
            lost: 0,
            peak_per_100ms: tally.peak_per_100ms,
            took,
            balance: servers.map(|server| counted.get(server).copied().unwrap_or(0)).collect(),
            problems: Vec::new(),
        };
        let mut offenders = Vec::new();
        let mut had_to_move = 0;
        for (client, fate) in tally.fates.iter().enumerate() {
            let mut route: Vec<Server> = stages.iter().filter_map(|owners| owners.of(client).cloned()).collect();
            route.dedup();
            let minimum = route.len().saturating_sub(1);
            let home = fate.place.is_some() && fate.place.as_ref() == route.last();
            verdict.needless += fate.breaks.saturating_sub(minimum);
            verdict.lost += usize::from(!home);
            verdict.returned += usize::from(minimum > 0 && home);
            had_to_move += usize::from(minimum > 0);
            if fate.route != route || fate.breaks != minimum || !home {
                offenders.push(format!(
                    "{} was on {} with {} breaks, and should have been on {} with {minimum}",
                    key(client),
                    fate.route.join(", then "),
                    fate.breaks,
                    route.join(", then "),
                ));
            }
        }
        if !offenders.is_empty() {
            let named = offenders.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
            verdict.problems.push(format!("{} clients did not fare as they should: {named}", offenders.len()));
        }
        if had_to_move == 0 {
            verdict.problems.push("nobody had to move, so the act shows nothing".into());
        }
        verdict
    }
}

impl Verdict {
    /// Judges an act in which one server shared its connections with new ones by load: all that had to move are the
    /// connections above the mean.
    pub fn by_load(act: &'static str, servers: &[&str], tally: &Tally, took: Duration) -> Self {
        let connections = tally.fates.len();
        let counted = tally.balance();
        let minimum = connections - connections.div_ceil(servers.len());
        let breaks: usize = tally.fates.iter().map(|fate| fate.breaks).sum();
        let mut verdict = Self {
            act,
            connections,
            moved: tally.broken(),
            untouched: connections - tally.broken(),
            needless: breaks.saturating_sub(minimum),
            returned: tally.fates.iter().filter(|fate| fate.breaks > 0 && fate.place.is_some()).count(),
            lost: tally.away(),
            peak_per_100ms: tally.peak_per_100ms,
            took,
            balance: servers.iter().map(|server| counted.get(*server).copied().unwrap_or(0)).collect(),
            problems: Vec::new(),
        };
        if breaks != minimum {
            verdict.problems.push(format!("connections broke {breaks} times, and should have broken {minimum} times"));
        }
        let places: Places = tally.fates.iter().map(|fate| fate.place.clone()).collect();
        if !is_even(&places, servers) {
            verdict.problems.push(format!("the servers have {} clients", Balance(&verdict.balance)));
        }
        verdict
    }
}

/// Whether every client is on one of these servers, and none has two more than another.
pub fn is_even(places: &Places, servers: &[&str]) -> bool {
    let on = |server: &&str| places.iter().flatten().filter(|place| ***place == **server).count();
    let counts: Vec<usize> = servers.iter().map(on).collect();
    let (least, most) = (counts.iter().min(), counts.iter().max());
    counts.iter().sum::<usize>() == places.len() && least.zip(most).is_some_and(|(least, most)| most - least <= 1)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "act={} connections={} moved={} untouched={} needless={} returned={} lost={} peak_per_100ms={} \
             seconds={:.1} balance={}",
            self.act,
            self.connections,
            self.moved,
            self.untouched,
            self.needless,
            self.returned,
            self.lost,
            self.peak_per_100ms,
            self.took.as_secs_f64(),
            Balance(&self.balance),
        )
    }
}

/// What the first act has shown under another way of balancing.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The act's name.
    pub act: &'static str,
    /// All clients.
    pub connections: usize,
    /// Clients whose connection was broken.
    pub broken: usize,
    /// The most reconnects within any 100 ms.
    pub peak_per_100ms: usize,
    /// Clients per server at the end.
    pub balance: Vec<usize>,
}

impl Comparison {
    /// Counts what happened; `servers` gives the order of the balance.
    pub fn of(act: &'static str, servers: &[&str], tally: &Tally) -> Self {
        let counted = tally.balance();
        Self {
            act,
            connections: tally.fates.len(),
            broken: tally.broken(),
            peak_per_100ms: tally.peak_per_100ms,
            balance: servers.iter().map(|server| counted.get(*server).copied().unwrap_or(0)).collect(),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "act={} connections={} broken={} peak_per_100ms={} balance={}",
            self.act,
            self.connections,
            self.broken,
            self.peak_per_100ms,
            Balance(&self.balance),
        )
    }
}

struct Balance<'a>(&'a [usize]);

impl fmt::Display for Balance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENTS: usize = 100;

    /// A history of events, 10 ms apart.
    struct History {
        places: Places,
        events: Vec<Event>,
        began: Instant,
    }

    impl History {
        fn beginning_at(owners: &Owners) -> Self {
            let places = (0..CLIENTS).map(|client| owners.of(client).cloned()).collect();
            Self { places, events: Vec::new(), began: Instant::now() }
        }

        fn push(&mut self, client: usize, what: What) {
            let at = self.began + Duration::from_millis(10) * u32::try_from(self.events.len()).expect("few events");
            self.events.push(Event { at, client, what });
        }

        fn moves(&mut self, client: usize, to: &Server) {
            self.push(client, What::Left(Some(1012)));
            self.push(client, What::Arrived(to.clone()));
        }

        fn judge(&self, stages: &[Owners]) -> Verdict {
            let end = self.began + Duration::from_mins(1);
            let tally = Tally::of(&self.places, &self.events, self.began, end);
            Verdict::of("test", stages, &tally, Duration::from_secs(1))
        }
    }

    fn owners(servers: &[&str]) -> Owners {
        Owners::new(servers.iter().zip(0..).map(|(server, slot)| (SlotId(slot), Server::from(*server))).collect())
    }

    /// Who must move between two stages, and where to.
    fn movers(from: &Owners, to: &Owners) -> Vec<(usize, Server)> {
        let owner = |owners: &Owners, client| owners.of(client).cloned().expect("an owner");
        (0..CLIENTS).map(|c| (c, owner(to, c))).filter(|(c, new)| owner(from, *c) != *new).collect()
    }

    /// A perfect scale-up from one server to two.
    fn scale_up() -> (History, [Owners; 2]) {
        let stages = [owners(&["a"]), owners(&["a", "b"])];
        let mut history = History::beginning_at(&stages[0]);
        for (client, to) in movers(&stages[0], &stages[1]) {
            history.moves(client, &to);
        }
        (history, stages)
    }

    #[test]
    fn an_act_in_which_exactly_the_movers_moved_has_no_problem() {
        let (history, stages) = scale_up();
        let verdict = history.judge(&stages);
        assert_eq!(verdict.problems, Vec::<String>::new());
        assert_eq!((verdict.needless, verdict.lost), (0, 0));
        assert_eq!(verdict.moved, movers(&stages[0], &stages[1]).len());
        assert_eq!(verdict.returned, verdict.moved);
        assert_eq!(verdict.moved + verdict.untouched, CLIENTS);
        assert_eq!(verdict.balance, [verdict.untouched, verdict.moved]);
    }

    #[test]
    fn breaking_a_client_that_had_to_stay_is_needless() {
        let (mut history, stages) = scale_up();
        let stays = (0..CLIENTS).find(|c| stages[1].of(*c).is_some_and(|s| **s == *"a")).expect("one stays");
        history.moves(stays, &Server::from("a"));
        let verdict = history.judge(&stages);
        assert_eq!((verdict.needless, verdict.lost, verdict.problems.len()), (1, 0, 1));
    }

    #[test]
    fn moving_a_client_twice_is_needless() {
        let (mut history, stages) = scale_up();
        let (client, to) = movers(&stages[0], &stages[1]).remove(0);
        history.moves(client, &to);
        let verdict = history.judge(&stages);
        assert_eq!((verdict.needless, verdict.lost, verdict.problems.len()), (1, 0, 1));
    }

    #[test]
    fn a_client_that_is_away_or_elsewhere_is_lost() {
        let (mut history, stages) = scale_up();
        history.push(movers(&stages[0], &stages[1])[0].0, What::Left(None));
        assert_eq!(history.judge(&stages).lost, 1);

        let (mut history, stages) = scale_up();
        history.events.truncate(history.events.len() - 2);
        let verdict = history.judge(&stages);
        assert_eq!((verdict.lost, verdict.needless, verdict.problems.len()), (1, 0, 1), "one has not moved yet");
    }

    #[test]
    fn a_killed_server_costs_its_clients_two_breaks_and_others_none() {
        let both = owners(&["a", "b"]);
        let stages = [both.clone(), both.without("b"), both.clone()];
        let mut history = History::beginning_at(&both);
        for (client, home) in (0..CLIENTS).map(|c| (c, both.of(c).cloned().expect("an owner"))) {
            if *home == *"b" {
                history.moves(client, &Server::from("a"));
                history.moves(client, &home);
            }
        }
        let verdict = history.judge(&stages);
        assert_eq!(verdict.problems, Vec::<String>::new());
        assert_eq!(verdict.needless, 0);
    }

    #[test]
    fn by_load_half_of_the_clients_move_and_no_more() {
        let servers = ["a", "b"];
        let mut history = History::beginning_at(&owners(&["a"]));
        (0..CLIENTS / 2).for_each(|client| history.moves(client, &Server::from("b")));
        let judge = |history: &History| {
            let tally = Tally::of(&history.places, &history.events, history.began, history.began);
            Verdict::by_load("test", &servers, &tally, Duration::from_secs(1))
        };
        let verdict = judge(&history);
        assert_eq!((verdict.problems.len(), verdict.needless, verdict.moved), (0, 0, CLIENTS / 2));
        assert_eq!(verdict.balance, [CLIENTS / 2, CLIENTS / 2]);
        history.moves(0, &Server::from("a"));
        let verdict = judge(&history);
        assert_eq!((verdict.problems.len(), verdict.needless), (2, 1), "{:?}", verdict.problems);
    }

    #[test]
    fn the_peak_is_the_most_arrivals_in_any_100_ms() {
        let places = vec![None; 3];
        let began = Instant::now();
        let arrival = |client, millis| Event {
            at: began + Duration::from_millis(millis),
            client,
            what: What::Arrived(Server::from("a")),
        };
        let events = [arrival(0, 90), arrival(1, 110), arrival(2, 195)];
        let tally = Tally::of(&places, &events, began, began);
        assert_eq!(tally.peak_per_100ms, 2, "a window of 100 ms that crosses no multiple of 100 ms counts too");
    }
}
