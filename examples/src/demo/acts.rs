//! The acts: what is done to the pool, and what must come of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Error;
use super::balancer::Balancer;
use super::crowd::Crowd;
use super::ledger::{Mark, Places};
use super::pool::{Placing, Pool, start_chat_server};
use super::ports::Ports;
use super::process::{Launcher, Process};
use super::screen::Screen;
use super::verdict::{self, Comparison, Owners, Tally, Verdict};
use super::view::View;

/// How long anything in an act may take.
const PATIENCE: Duration = Duration::from_secs(45);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long an act is watched after it seems to be over: whoever is moved once too often is moved by then.
const AFTERMATH: Duration = Duration::from_secs(1);

/// What the demo is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many clients.
    pub connections: usize,
    /// The pool's `rebalance.rate`, in connections per second.
    pub rate: u32,
}

/// What an act has shown.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Under wspool.
    Act(Verdict),
    /// Under something else.
    Comparison(Comparison),
}

impl Outcome {
    /// What should not have been.
    pub fn problems(&self) -> &[String] {
        match self {
            Self::Act(verdict) => &verdict.problems,
            Self::Comparison(_) => &[],
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Act(verdict) => verdict.fmt(f),
            Self::Comparison(comparison) => comparison.fmt(f),
        }
    }
}

/// Plays all acts. `folder` is for the demo's files. Outcomes are handed to `outcomes` as they come, so that those before
/// a failure are not lost.
pub async fn play(
    plan: Plan,
    launcher: Launcher,
    folder: &Path,
    screen: &Screen,
    outcomes: &mut Vec<Outcome>,
) -> Result<(), Error> {
    let mut stage = Stage::open(plan, Placing::ByKey, launcher.clone(), folder.join("by-key"), screen).await?;
    let mut told = |outcome: Outcome| {
        screen.say(&outcome.to_string());
        for problem in outcome.problems() {
            screen.say(&format!("  {problem}"));
        }
        outcomes.push(outcome);
    };
    told(Outcome::Act(stage.scale_up().await?));
    told(Outcome::Act(stage.rollout().await?));
    told(Outcome::Act(stage.drain().await?));
    told(Outcome::Act(stage.join_before_the_kill().await?));
    told(Outcome::Act(stage.kill().await?));
    stage.close().await?;
    let mut stage = Stage::open(plan, Placing::ByLoad, launcher.clone(), folder.join("by-load"), screen).await?;
    told(Outcome::Act(stage.even_out().await?));
    stage.close().await?;
    told(Outcome::Comparison(compare(plan.connections, Instead::DropAll, &launcher, screen).await?));
    told(Outcome::Comparison(compare(plan.connections, Instead::RoundRobin, &launcher, screen).await?));
    screen.end();
    Ok(())
}

/// The pool, its clients, and the place in the ledger where the act began.
struct Stage<'a> {
    pool: Pool,
    crowd: Crowd,
    screen: &'a Screen,
    mark: Mark,
}

impl<'a> Stage<'a> {
    /// One server, and every client on it.
    async fn open(
        plan: Plan,
        placing: Placing,
        launcher: Launcher,
        folder: PathBuf,
        screen: &'a Screen,
    ) -> Result<Self, Error> {
        let mut pool = Pool::open(launcher, folder, plan.rate, placing).await?;
        pool.start("server-1").await?;
        pool.list(&["server-1"])?;
        let crowd = Crowd::none();
        let mut stage = Self { mark: crowd.ledger.mark(), crowd, pool, screen };
        stage.until("server-1 alone in the pool", |_, view| view.is_settled_on(&["server-1"])).await?;
        stage.crowd = Crowd::enter(plan.connections, stage.pool.entry());
        stage.mark = stage.crowd.ledger.mark();
        let story = format!("{} clients come to Server 1.", plan.connections);
        stage.begin("before the acts", &story, &[("server-1", "")]);
        stage.settle_on(&["server-1"]).await?;
        stage.mark = stage.crowd.ledger.turn(&stage.mark).1;
        Ok(stage)
    }

    async fn scale_up(&mut self) -> Result<Verdict, Error> {
        self.pool.start("server-2").await?;
        let story = "Server 2 joins: the keys that are its own now move, at a pace, and nobody else notices.";
        self.begin("act 1 of 4, scale-up", story, &[("server-1", ""), ("server-2", "joins")]);
        self.change("scale-up", &["server-1", "server-2"]).await
    }

    async fn rollout(&mut self) -> Result<Verdict, Error> {
        self.pool.start("server-3").await?;
        let story = "A new version: Server 3 takes the place of Server 1 in one step.";
        let cast = [("server-1", "leaves"), ("server-2", ""), ("server-3", "replaces it")];
        self.begin("act 2 of 4, rollout", story, &cast);
        let verdict = self.change("rollout", &["server-2", "server-3"]).await?;
        self.stop_empty("server-1").await?;
        Ok(verdict)
    }

    async fn drain(&mut self) -> Result<Verdict, Error> {
        let story = "Scale-down: Server 2 is drained, and stopped when it is empty.";
        self.begin("act 3 of 4, drain", story, &[("server-2", "drains"), ("server-3", "")]);
        let verdict = self.change("drain", &["server-3"]).await?;
        self.stop_empty("server-2").await?;
        Ok(verdict)
    }

    async fn join_before_the_kill(&mut self) -> Result<Verdict, Error> {
        self.pool.start("server-4").await?;
        let story = "Server 4 joins, so that there is one to kill.";
        self.begin("before act 4", story, &[("server-3", ""), ("server-4", "joins")]);
        self.change("scale-up-again", &["server-3", "server-4"]).await
    }

    async fn kill(&mut self) -> Result<Verdict, Error> {
        let story = "Server 4 is killed with its sidecar. Its clients go to their next-best server, and return to it.";
        self.begin("act 4 of 4, kill", story, &[("server-3", ""), ("server-4", "killed")]);
        let owners = self.pool.view().await?.owners();
        let stages = [owners.clone(), owners.without("server-4"), owners];
        let began = Instant::now();
        self.pool.kill("server-4").await?;
        let on_fallback = |places: &Places, _: &View| stages[1].agree_with(places);
        self.until("the killed server's clients at their next-best server", on_fallback).await?;
        let told =
            format!("All clients of server-4 were at server-3 {:.1} s after the kill.", began.elapsed().as_secs_f64());
        self.screen.say(&told);
        self.pool.start("server-4").await?;
        self.screen.note("server-4", "is back");
        self.settle_on(&["server-3", "server-4"]).await?;
        self.judge(began, |tally, took| Verdict::of("kill", &stages, tally, took)).await
    }

    /// The first act in a pool without keys.
    async fn even_out(&mut self) -> Result<Verdict, Error> {
        self.pool.start("server-2").await?;
        let story = "The same without keys: Server 2 joins, and gets half of the connections, the longest idle first.";
        self.begin("scale-up by load", story, &[("server-1", ""), ("server-2", "joins")]);
        let servers = ["server-1", "server-2"];
        let began = Instant::now();
        self.pool.list(&servers)?;
        let even = |places: &Places, view: &View| view.is_settled_on(&servers) && verdict::is_even(places, &servers);
        self.until("as many clients on the one server as on the other", even).await?;
        self.judge(began, |tally, took| Verdict::by_load("scale-up-by-load", &servers, tally, took)).await
    }

    /// Puts exactly these servers into the members file, waits until everyone is where they belong, and judges.
    async fn change(&mut self, act: &'static str, servers: &[&str]) -> Result<Verdict, Error> {
        let before = self.pool.view().await?.owners();
        let began = Instant::now();
        self.pool.list(servers)?;
        let after = self.settle_on(servers).await?;
        self.judge(began, |tally, took| Verdict::of(act, &[before, after], tally, took)).await
    }

    async fn judge(
        &mut self,
        began: Instant,
        verdict: impl FnOnce(&Tally, Duration) -> Verdict,
    ) -> Result<Verdict, Error> {
        let took = began.elapsed();
        sleep(AFTERMATH).await;
        self.pool.check()?;
        let (events, next) = self.crowd.ledger.turn(&self.mark);
        let tally = Tally::of(&self.mark.places, &events, began, Instant::now());
        self.mark = next;
        let mut verdict = verdict(&tally, took);
        let echoes = self.crowd.ledger.echoes();
        if echoes.wrong > 0 {
            verdict.problems.push(format!("{} echoes were wrong", echoes.wrong));
        }
        Ok(verdict)
    }

    fn begin(&self, heading: &str, story: &str, cast: &[(&str, &'static str)]) {
        self.screen.begin(heading, story, &self.crowd.ledger, &self.mark, cast);
    }

    /// Waits until exactly these servers hold slots, nothing moves, and every client is at its owner.
    async fn settle_on(&mut self, servers: &[&str]) -> Result<Owners, Error> {
        let what = format!("every client at its owner among {}", servers.join(" and "));
        let settled = |places: &Places, view: &View| view.is_settled_on(servers) && view.owners().agree_with(places);
        Ok(self.until(&what, settled).await?.owners())
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Places, &View) -> bool) -> Result<View, Error> {
        let began = Instant::now();
        loop {
            self.pool.check()?;
            let view = self.pool.view().await;
            let places = self.crowd.ledger.places();
            if let Ok(view) = view.as_ref() {
                self.screen.show(view);
                if condition(&places, view) {
                    return Ok(view.clone());
                }
            }
            if began.elapsed() > PATIENCE {
                let away = places.iter().filter(|place| place.is_none()).count();
                let state = match view {
                    Ok(view) => format!("{away} clients are away, and the operator says {view:?}"),
                    Err(error) => error.to_string(),
                };
                return Err(Error::Late { what: what.into(), limit: PATIENCE, state });
            }
            sleep(LOOK).await;
        }
    }

    /// Stops a server once its sidecar says that it holds nothing.
    async fn stop_empty(&mut self, name: &str) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let connections = self.pool.report(name).await?.connections;
            if connections == 0 {
                return self.pool.stop(name).await;
            }
            if began.elapsed() > PATIENCE {
                let state = format!("its sidecar holds {connections} connections");
                return Err(Error::Late { what: format!("{name} empty"), limit: PATIENCE, state });
            }
            sleep(LOOK).await;
        }
    }

    async fn close(self) -> Result<(), Error> {
        let echoes = self.crowd.ledger.echoes();
        self.screen.say(&format!(
            "{} echoes came back right, {} wrong; {} were on their way when their connection ended.",
            echoes.right, echoes.wrong, echoes.unanswered
        ));
        drop(self.crowd);
        self.pool.close().await
    }
}

/// What balances in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Every connection is dropped when the list of servers changes.
    DropAll,
    /// Only new connections are balanced.
    RoundRobin,
}

/// The first act again, behind a plain balancer and without wspool.
pub async fn compare(
    clients: usize,
    instead: Instead,
    launcher: &Launcher,
    screen: &Screen,
) -> Result<Comparison, Error> {
    let mut ports = Ports::new();
    let (first, second, entry) = (ports.free()?, ports.free()?, ports.free()?);
    let mut servers =
        [start_chat_server(launcher, "server-1", first)?, start_chat_server(launcher, "server-2", second)?];
    let balancer = Balancer::start(entry, first).await?;
    let crowd = Crowd::enter(clients, balancer.entry);
    let mark = crowd.ledger.mark();
    let (act, heading, story) = match instead {
        Instead::DropAll => (
            "scale-up-drop-all",
            "act 1 again, drop all",
            "Server 2 joins, and the balancer drops every connection, as a proxy reload does.",
        ),
        Instead::RoundRobin => (
            "scale-up-round-robin",
            "act 1 again, round robin",
            "Server 2 joins, and the balancer gives it every other new connection.",
        ),
    };
    screen.begin(heading, story, &crowd.ledger, &mark, &[("server-1", ""), ("server-2", "joins")]);
    until_connected(&crowd, &mark, &mut servers, 0).await?;

    let (_, mark) = crowd.ledger.turn(&mark);
    let began = Instant::now();
    balancer.add(second);
    if instead == Instead::DropAll {
        balancer.drop_all();
        until_connected(&crowd, &mark, &mut servers, clients).await?;
    }
    sleep(AFTERMATH).await;
    let events = crowd.ledger.since(&mark);
    let tally = Tally::of(&mark.places, &events, began, Instant::now());
    Ok(Comparison::of(act, &["server-1", "server-2"], &tally))
}

/// Waits until so many clients have been broken and all are connected.
async fn until_connected(crowd: &Crowd, mark: &Mark, servers: &mut [Process], broken: usize) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        servers.iter_mut().try_for_each(Process::check)?;
        let tally = Tally::of(&mark.places, &crowd.ledger.since(mark), began, Instant::now());
        if tally.away() == 0 && tally.broken() >= broken {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let state = format!("{} clients are away", tally.away());
            return Err(Error::Late { what: "every client connected".into(), limit: PATIENCE, state });
        }
        sleep(LOOK).await;
    }
}
