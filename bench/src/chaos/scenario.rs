//! The steps, the same for all arms at the same time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::arm::{Arm, Way, node_of};
use super::fault::{self, Process};
use super::ledger::{self, Span, Tally};

/// A step is over when nothing has ended for so long, and everything is as it should be.
const QUIET: Duration = Duration::from_secs(8);
/// The longest that is waited for that.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the API server is halted.
const OUTAGE: Duration = Duration::from_secs(60);
/// How long a node's cable is cut.
const CUT: Duration = Duration::from_secs(20);

/// What is done, in this order: a node that is off stays off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// From three pods to four.
    Grow,
    /// From four to three.
    Shrink,
    /// Guests come, and the autoscaler makes a fourth pod.
    AutoscaleUp,
    /// They go, and so does the pod.
    AutoscaleDown,
    /// All pods are replaced.
    Rollout,
    /// A node is emptied with `kubectl drain`.
    DrainNode,
    /// The app of a pod is killed.
    KillApp,
    /// All processes of a pod are killed.
    KillPod,
    /// A sidecar is killed; a worker of nginx.
    KillProxy,
    /// From three pods to four, and the operator is killed when the first connections have moved.
    KillOperator,
    /// From four pods to three, and the API server is halted when the first connections have moved.
    HaltApi,
    /// From three to four, and a quarter of the clients does not come back.
    Deserters,
    /// They come back, and the pool shrinks.
    Return,
    /// A node's cable is cut.
    CutCable,
    /// A node is powered off.
    PowerOff,
}

impl Step {
    /// What is done, in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grow => "scale 3 to 4",
            Self::Shrink => "scale 4 to 3",
            Self::AutoscaleUp => "HPA up: 3 to 4 for 30 % more clients",
            Self::AutoscaleDown => "HPA down: they go, 4 to 3",
            Self::Rollout => "rollout",
            Self::DrainNode => "kubectl drain of a node",
            Self::KillApp => "kill -9 of a pod's app",
            Self::KillPod => "kill -9 of all processes of a pod",
            Self::KillProxy => "kill -9 of a sidecar (nginx: its worker)",
            Self::KillOperator => "scale 3 to 4, kill -9 of the operator",
            Self::HaltApi => "scale 4 to 3, API server off for 60 s",
            Self::Deserters => "scale 3 to 4, a quarter does not return",
            Self::Return => "they return, scale 4 to 3",
            Self::CutCable => "a node's link cut for 20 s",
            Self::PowerOff => "power off of a node",
        }
    }

    /// Whether servers are cut off from their clients: then there is no promise for rooms.
    pub const fn is_crash(self) -> bool {
        matches!(self, Self::KillApp | Self::KillPod | Self::KillProxy | Self::CutCable | Self::PowerOff)
    }

    /// Whether it happens to all of the cluster.
    const fn is_shared(self) -> bool {
        matches!(self, Self::DrainNode | Self::HaltApi | Self::CutCable | Self::PowerOff)
    }

    const fn replicas(self) -> usize {
        if matches!(self, Self::Grow | Self::AutoscaleUp | Self::KillOperator | Self::Deserters) { 4 } else { 3 }
    }
}

/// One row: a step, an arm, and what it came to.
pub struct Row {
    /// The step.
    pub step: Step,
    /// The arm.
    pub way: Way,
    /// What it came to.
    pub tally: Tally,
    /// Whether everything was as it should be within two minutes.
    pub settled: bool,
    /// How long the step took.
    pub took: Duration,
    /// Resident memory in front of the apps at its end, in bytes.
    pub memory: u64,
}

/// Takes one step with all arms, and waits until it is over. What can happen to pools alone does so before it happens to the
/// rest: where nginx sends all clients away at once, they would have the processors for themselves.
pub async fn take(step: Step, arms: &[Arm]) -> Vec<Row> {
    let groups: [Vec<&Arm>; 2] = if step.is_shared() {
        [arms.iter().collect(), Vec::new()]
    } else {
        let (pools, others) = arms.iter().partition(|arm| arm.way.is_wspool());
        [pools, others]
    };
    let mut rows = Vec::new();
    for group in groups.iter().filter(|group| !group.is_empty()) {
        rows.extend(take_together(step, group).await);
    }
    rows
}

async fn take_together(step: Step, arms: &[&Arm]) -> Vec<Row> {
    let begin = Instant::now();
    let hit = act(step, arms).await;
    let settled = over(step, arms).await;
    let end = Instant::now();
    for (arm, _) in arms.iter().zip(&settled).filter(|(_, settled)| !**settled) {
        eprintln!("{} is not over for {}:\n{}", step.name(), arm.way.name(), arm.state().await);
    }
    tokio::time::sleep(ledger::AFTER).await;
    let rows = arms.iter().zip(hit).zip(settled).map(async |((arm, hit), settled)| {
        let tally = ledger::tally(&arm.crowd.lives(), &Span { begin, end, hit });
        Row { step, way: arm.way, tally, settled, took: end - begin, memory: arm.memory().await }
    });
    let rows = join_all(rows).await;
    if step == Step::AutoscaleDown {
        join_all(arms.iter().map(|arm| arm.autoscale(false))).await;
    }
    rows
}

/// Does what a step does; returns the servers of each arm that were cut off from their clients.
async fn act(step: Step, arms: &[&Arm]) -> Vec<BTreeSet<String>> {
    let mut hit = vec![BTreeSet::new(); arms.len()];
    match step {
        Step::Grow | Step::Shrink => scale(arms, step).await,
        Step::AutoscaleUp | Step::AutoscaleDown => autoscale(arms, step).await,
        Step::Rollout => {
            let restart = ["rollout", "restart", "deployment/chat"];
            join_all(arms.iter().map(|arm| arm.kubectl(&restart))).await;
        }
        Step::DrainNode => {
            let node = some_node(arms).await;
            let drain = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=110s"];
            arms[0].kubectl(&drain).await;
            arms[0].kubectl(&["uncordon", &node]).await;
        }
        Step::KillApp | Step::KillPod | Step::KillProxy => hit = join_all(arms.iter().map(|arm| kill(step, arm))).await,
        Step::KillOperator => {
            begin_to_scale(arms, step).await;
            if arms.iter().any(|arm| arm.way.is_wspool()) {
                let is_operator = |process: &Process| process.command.contains("wspool-operator run");
                fault::processes().into_iter().filter(is_operator).for_each(|operator| operator.kill());
            }
        }
        Step::HaltApi => {
            begin_to_scale(arms, step).await;
            let server = fault::with("kube-apiserver");
            server.halt();
            tokio::time::sleep(OUTAGE).await;
            server.go_on();
        }
        Step::Deserters => {
            for arm in arms {
                arm.crowd.stay_away(arm.crowd.members() / 4);
            }
            scale(arms, step).await;
        }
        Step::Return => {
            for arm in arms {
                arm.crowd.stay_away(0);
            }
            scale(arms, step).await;
        }
        Step::CutCable | Step::PowerOff => {
            let node = some_node(arms).await;
            hit = join_all(arms.iter().map(|arm| arm.pods_on(&node))).await;
            if step == Step::PowerOff {
                fault::power_off(&node);
            } else {
                fault::cable(&node, "down");
                tokio::time::sleep(CUT).await;
                fault::cable(&node, "up");
            }
        }
    }
    hit
}

async fn scale(arms: &[&Arm], step: Step) {
    join_all(arms.iter().map(|arm| arm.scale(step.replicas()))).await;
}

/// Scales, and waits until the first connections have moved.
async fn begin_to_scale(arms: &[&Arm], step: Step) {
    let pools = || arms.iter().filter(|arm| arm.way.is_wspool());
    let before: Vec<usize> = pools().map(|arm| arm.crowd.breaks()).collect();
    let begin = Instant::now();
    scale(arms, step).await;
    while begin.elapsed() < LIMIT && pools().zip(&before).any(|(arm, before)| arm.crowd.breaks() < before + 3) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Guests come or go; the pools are scaled by that, and nginx's pods by hand.
async fn autoscale(arms: &[&Arm], step: Step) {
    let up = step == Step::AutoscaleUp;
    for arm in arms {
        if up {
            arm.autoscale(true).await;
            arm.crowd.invite();
        } else {
            arm.crowd.dismiss();
        }
        if arm.way == Way::Nginx {
            arm.scale(step.replicas()).await;
        }
    }
}

/// Kills processes of a pod, each step of another; returns the servers whose clients that cuts off.
async fn kill(step: Step, arm: &Arm) -> BTreeSet<String> {
    let pods = arm.pods().await;
    if step == Step::KillProxy && arm.way == Way::Nginx {
        fault::with("nginx: worker process").kill();
        return pods.iter().map(Pod::name_any).collect();
    }
    let (index, words) = match step {
        Step::KillApp => (0, "pod-rooms.js"),
        Step::KillPod => (1, ""),
        _ => (2, "wspool-sidecar"),
    };
    let pod = pods.get(index).expect("three pods");
    let processes = fault::of_pod(&pod.uid().expect("its UID")).into_iter();
    let those = processes.filter(|process| process.command.contains(words) && !process.command.contains("/pause"));
    those.for_each(|process| process.kill());
    BTreeSet::from([pod.name_any()])
}

/// The node with pods of most arms, of these the one with the fewest routers: a router takes those with it who came in there.
async fn some_node(arms: &[&Arm]) -> String {
    let mut nodes: BTreeMap<String, (usize, Reverse<usize>)> = BTreeMap::new();
    for arm in arms {
        let apps: BTreeSet<String> = arm.pods().await.iter().filter_map(node_of).collect();
        for node in apps {
            nodes.entry(node).or_default().0 += 1;
        }
        for node in arm.routers().await.iter().filter_map(node_of) {
            nodes.entry(node).or_default().1.0 += 1;
        }
    }
    nodes.into_iter().max_by_key(|(_, worth)| *worth).expect("nodes with pods").0
}

/// Waits until the step is over for all; says for each whether it is.
async fn over(step: Step, arms: &[&Arm]) -> Vec<bool> {
    let begin = Instant::now();
    let (mut breaks, mut quiet) = (0, Instant::now());
    loop {
        let now: usize = arms.iter().map(|arm| arm.crowd.breaks()).sum();
        if now != breaks {
            (breaks, quiet) = (now, Instant::now());
        }
        let checks = join_all(arms.iter().map(|arm| arm.is_settled(step.replicas()))).await;
        let complete = |arm: &Arm| step == Step::Deserters || arm.crowd.is_complete();
        let settled: Vec<bool> = arms.iter().zip(checks).map(|(arm, is)| is && complete(arm)).collect();
        if (settled.iter().all(|is| *is) && quiet.elapsed() >= QUIET) || begin.elapsed() >= LIMIT {
            return settled;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
