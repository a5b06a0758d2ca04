//! What it costs to move: a sidecar holds many connections, and another one gets a slot.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use harness::wait::within;
use harness::{Plan, Sidecar};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::cores::Cores;
use super::echo::Echo;
use super::load::{self, Client};
use super::proxy;
use super::run::micros;
use crate::usage::Usage;

/// Evictions a second.
pub const PACE: u32 = 1_000;
/// Echoes a second of those who stay.
const RATE: u32 = 5_000;
/// How many of those who stay send.
const PACED: usize = 100;
/// How often a grant is renewed, as the operator does.
const BEAT: Duration = Duration::from_millis(250);
/// How a Close frame of a server begins.
const CLOSE: u8 = 0x88;

/// What was measured, in microseconds but for the counts.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Connections held before.
    pub held: u32,
    /// Connections that had to move, and did.
    pub moved: u32,
    /// From the new placement's arrival at the sidecar that holds them to its answer, which says what will move.
    pub evaluated: f64,
    /// From then until all are back, in seconds.
    pub seconds: f64,
    /// CPU time of both sidecars for each connection that moved: its eviction, the claim of its key, its handshake. What
    /// the messages of those who stay cost before is not in it.
    pub cpu: f64,
    /// Latency of those who stay, p50 and p99, before.
    pub before: (f64, f64),
    /// The same meanwhile.
    pub meanwhile: (f64, f64),
}

/// Two sidecars, each beside its app. The first holds the only slot until the second gets one.
struct Pair {
    first: Sidecar,
    second: Sidecar,
    plan: Plan,
    processes: [u32; 2],
    _apps: [Echo; 2],
}

/// Its clients, by what the second slot means to them.
struct Clients {
    staying: Vec<Client>,
    /// They follow their keys.
    moving: JoinSet<io::Result<Client>>,
}

/// Measures once.
pub async fn measure(cores: Cores, held: u32) -> io::Result<Move> {
    let mut pair = Pair::start(cores).await?;
    let Clients { mut staying, moving } = pair.fill(held).await?;
    let moved = u32::try_from(moving.len()).expect("some of those held");

    let used = pair.cpu();
    let began = Instant::now();
    let before = load::open_loop(&mut staying[..PACED], 128, RATE, 100).await?;
    let echoes = pair.cpu().saturating_sub(used).div_f64(began.elapsed().as_secs_f64());

    let used = pair.cpu();
    let evaluated = pair.place(moved).await;
    let began = Instant::now();
    let meanwhile = pair.move_all(moving, &mut staying[..PACED]).await?;
    let took = began.elapsed().as_secs_f64();
    let used = pair.cpu().saturating_sub(used).saturating_sub(echoes.mul_f64(took));
    let percentiles = |away: &[Duration]| (micros(load::percentile(away, 50)), micros(load::percentile(away, 99)));
    Ok(Move {
        held,
        moved,
        evaluated: micros(evaluated),
        seconds: took,
        cpu: micros(used) / f64::from(moved),
        before: percentiles(&before),
        meanwhile: percentiles(&meanwhile),
    })
}

impl Pair {
    async fn start(cores: Cores) -> io::Result<Self> {
        let apps = [Echo::start()?, Echo::start()?];
        let start = async |name: &str, app: &Echo| {
            cores.on_proxy_core(Sidecar::named(name).upstream(app.address).start()).await
        };
        let mut first = start("first", &apps[0]).await;
        let mut second = start("second", &apps[1]).await;
        let processes = [first.process().pid(), second.process().pid()];
        let mut plan = proxy::unlimited();
        plan.hold(&[(0, &first)]);
        plan.publish(&[&first, &second]).await;
        Ok(Self { first, second, plan, processes, _apps: apps })
    }

    /// Clients connect to the first, which owns all keys; from here on the plan gives the second its slot.
    async fn fill(&mut self, count: u32) -> io::Result<Clients> {
        let clients = Client::connect_all(self.first.listen, 0..count).await?;
        self.plan.hold(&[(0, &self.first), (1, &self.second)]);
        let mut all = Clients { staying: Vec::new(), moving: JoinSet::new() };
        for (user, client) in (0..count).zip(clients) {
            if self.plan.owner(&format!("user-{user}")) == self.second.name {
                all.moving.spawn(follow(client, user, self.second.listen));
            } else {
                all.staying.push(client);
            }
        }
        Ok(all)
    }

    /// Both get the placement with two slots; returns how long the first took to say what moves.
    async fn place(&self, moved: u32) -> Duration {
        self.second.place(&self.plan.placement).await;
        let began = Instant::now();
        let report = self.first.place(&self.plan.placement).await;
        let evaluated = began.elapsed();
        assert_eq!(report.moved, u64::from(moved), "exactly those move that have to");
        evaluated
    }

    /// Moves everybody who must move, while those who stay send; returns how long their messages were away, in order of
    /// length.
    async fn move_all(&self, moving: JoinSet<io::Result<Client>>, staying: &mut [Client]) -> io::Result<Vec<Duration>> {
        let mut all_back = pin!(within("everybody to be back", moving.join_all()));
        let mut granting = pin!(self.grant());
        let mut away = Vec::new();
        loop {
            tokio::select! {
                back = &mut all_back => {
                    back.into_iter().collect::<io::Result<Vec<Client>>>()?;
                    away.sort_unstable();
                    return Ok(away);
                }
                never = &mut granting => match never {},
                // A tenth of a second's.
                some = load::open_loop(staying, 128, RATE, 5) => away.extend(some?),
            }
        }
    }

    /// Permits the first sidecar to evict, for ever.
    async fn grant(&self) -> Infallible {
        let mut beats = tokio::time::interval(BEAT);
        let mut evicted = 0;
        loop {
            beats.tick().await;
            let grant = self.plan.grant(&self.first, evicted + u64::from(PACE));
            evicted = self.first.grant(&grant).await.evicted;
        }
    }

    fn cpu(&self) -> Duration {
        self.processes.iter().map(|pid| Usage::precise_cpu(*pid)).sum()
    }
}

/// A client that waits for its notice, answers it, and comes back where its key is now.
async fn follow(client: Client, user: u32, home: SocketAddr) -> io::Result<Client> {
    let mut stream = client.into_stream();
    let mut notice = Vec::with_capacity(128);
    while notice.len() < 2 || notice.len() < 2 + usize::from(notice[1]) {
        if stream.read_buf(&mut notice).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    assert_eq!(notice[0], CLOSE, "a notice is all that a silent client gets");
    stream.write_all(&[CLOSE, 0x82, 0, 0, 0, 0, notice[2], notice[3]]).await?;
    while stream.read(&mut [0; 16]).await? > 0 {}
    drop(stream);
    Client::connect(home, user).await
}
