//! A pool that never stands still, for a long time: its processes' memory must.
//!
//! ```text
//!  Crowd, visitors ──► router ──► first, second, third: servers of which the third comes and goes
//!                                   ▲
//!                        standalone operator
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::operator::Files;
use harness::{App, Client, Crowd, Guestbook, Operator, Sidecar};
use tokio::task::JoinSet;

use crate::usage::Usage;

/// Clients that stay, each of a key of its own.
const CLIENTS: usize = 1_000;
/// Clients that come, talk and go, again and again, at once.
const VISITORS: usize = 20;
/// What each says before it goes, and how often.
const WORDS: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);
const SPEC: &str = "rebalance: {settle: 500ms, rate: 200}, limits: {handshakesPerSecond: 2000}";
const NAMES: [&str; 3] = ["first", "second", "third"];
/// What memory may differ by without having grown: what allocators keep.
const SLACK: u64 = 2 << 20;

/// The processes of a pool, and its clients.
pub struct Soak {
    servers: Vec<Sidecar>,
    router: Sidecar,
    operator: Operator,
    crowd: Crowd,
    visitors: JoinSet<()>,
    book: Guestbook,
    _apps: Vec<App>,
}

/// Each process's memory when two servers hold everything: in bytes, one after each cycle.
pub type Samples = BTreeMap<String, Vec<u64>>;

/// What a soak has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How long it took.
    pub took: Duration,
    /// How often the third server came and went.
    pub cycles: usize,
    /// Connections that were moved.
    pub moved: usize,
    /// Memory.
    pub memory: Samples,
}

impl Soak {
    /// Starts everything, and waits until all clients are where they belong.
    pub async fn start() -> Self {
        let book = Guestbook::default();
        let (mut servers, mut apps) = (Vec::new(), Vec::new());
        for name in NAMES {
            let app = App::start(name, &book).await;
            servers.push(Sidecar::named(name).upstream(app.address).start().await);
            apps.push(app);
        }
        let router = Sidecar::router().await;
        let operator = Operator::start(Files::new(SPEC)).await;
        let (crowd, visitors) = (Crowd::default(), JoinSet::new());
        let mut soak = Self { servers, router, operator, crowd, visitors, book, _apps: apps };
        soak.scale(2).await;
        soak.crowd.join_users(CLIENTS, &[soak.router.listen]).await;
        for number in 0..VISITORS {
            soak.visitors.spawn(visit_for_ever(soak.router.listen, number));
        }
        soak
    }

    /// Lets the third server come and go until the time is over, and then once more; panics when a client is not where it
    /// belongs afterwards, or was on two servers at a time.
    pub async fn run(mut self, time: Duration, mut after_cycle: impl FnMut(&Seen)) -> Seen {
        let began = Instant::now();
        let mut seen = Seen { took: Duration::ZERO, cycles: 0, moved: 0, memory: Samples::new() };
        while seen.took < time {
            for servers in [3, 2] {
                self.scale(servers).await;
                let present = self.crowd.present();
                assert_eq!(present.len(), servers, "servers with clients: {present:?}");
            }
            seen.cycles += 1;
            seen.moved = self.crowd.breaks();
            seen.took = began.elapsed();
            self.sample(&mut seen.memory);
            after_cycle(&seen);
        }
        assert_eq!(self.book.on_two_servers(), Vec::<String>::new());
        seen
    }

    /// So many of the servers hold slots; waits until everybody is where that puts them.
    async fn scale(&mut self, servers: usize) {
        let listed: Vec<&Sidecar> = self.servers.iter().take(servers).collect();
        self.operator.files().list(&listed, &[&self.router]);
        self.operator.stable(servers).await;
        self.crowd.settled().await;
    }

    fn sample(&mut self, samples: &mut Samples) {
        let mut sample = |name: &str, pid| {
            samples.entry(name.to_owned()).or_default().push(Usage::of(pid).resident);
        };
        for server in &mut self.servers {
            let pid = server.process().pid();
            sample(&server.name, pid);
        }
        sample("router", self.router.process().pid());
        sample("operator", self.operator.pid());
    }
}

/// A client that talks for a while, goes, and comes as somebody else.
async fn visit_for_ever(entry: SocketAddr, number: usize) {
    for turn in 0_u64.. {
        tokio::time::sleep(PAUSE).await;
        // A handshake may be refused, and a visit ended, while its key moves.
        let Ok(mut client) = Client::try_connect(entry, &format!("visitor-{number}-{turn}")).await else { continue };
        for _ in 0..WORDS {
            if !client.echoes("a word").await {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What a process had in the middle of the time, and at its end: medians, of the second and the last quarter.
pub fn middle_and_end(samples: &[u64]) -> (u64, u64) {
    let quarter = samples.len() / 4;
    let median = |of: &[u64]| {
        let mut of = of.to_vec();
        of.sort_unstable();
        of.get(of.len() / 2).copied().unwrap_or_default()
    };
    (median(&samples[quarter..2 * quarter]), median(&samples[samples.len() - quarter..]))
}

/// Whether memory has stayed.
pub fn is_flat(samples: &[u64]) -> bool {
    let (middle, end) = middle_and_end(samples);
    end <= middle + SLACK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_once_is_flat_and_memory_that_goes_on_growing_is_not() {
        let once: Vec<u64> = (0..40).map(|cycle: u64| (cycle.min(5) << 20) + (cycle % 3)).collect();
        let on: Vec<u64> = (0..40).map(|cycle| cycle << 18).collect();
        assert!(is_flat(&once) && !is_flat(&on), "{:?} {:?}", middle_and_end(&once), middle_and_end(&on));
    }
}
