//! The steps, the same for all arms at the same time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::arm::{Arm, Way};
use super::fault;
use super::ledger::{self, Tally};

/// A step is over when nothing has ended for so long, and everything is as it should be.
const QUIET: Duration = Duration::from_secs(8);
/// The longest that is waited for that.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the API server is halted.
const OUTAGE: Duration = Duration::from_secs(60);
/// How long a node's cable is cut.
const CUT: Duration = Duration::from_secs(20);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// From three pods to four.
    Grow,
    /// From four to three.
    Shrink,
    /// All pods are replaced.
    Rollout,
    /// A node is emptied with `kubectl drain`.
    DrainNode,
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

/// All steps, in their order: a node that is off stays off.
pub const STEPS: [Step; 12] = [
    Step::Grow,
    Step::Shrink,
    Step::Rollout,
    Step::DrainNode,
    Step::KillPod,
    Step::KillProxy,
    Step::KillOperator,
    Step::HaltApi,
    Step::Deserters,
    Step::Return,
    Step::CutCable,
    Step::PowerOff,
];

impl Step {
    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grow => "scale 3 to 4",
            Self::Shrink => "scale 4 to 3",
            Self::Rollout => "rollout",
            Self::DrainNode => "kubectl drain",
            Self::KillPod => "kill -9 of a pod",
            Self::KillProxy => "kill -9 of a sidecar (a worker of nginx)",
            Self::KillOperator => "scale 3 to 4, kill -9 of the operator",
            Self::HaltApi => "scale 4 to 3, API server off for 60 s",
            Self::Deserters => "scale 3 to 4, a quarter does not return",
            Self::Return => "they return, scale 4 to 3",
            Self::CutCable => "a node's link cut for 20 s",
            Self::PowerOff => "power off of a node",
        }
    }

    fn replicas(self) -> usize {
        if matches!(self, Self::Grow | Self::KillOperator | Self::Deserters) { 4 } else { 3 }
    }
}

/// One row: a step, an arm, what it came to, and whether it was over in time.
pub struct Row {
    /// The step.
    pub step: Step,
    /// The arm.
    pub way: Way,
    /// What it came to.
    pub tally: Tally,
    /// Whether everything was as it should be within two minutes.
    pub settled: bool,
}

/// Takes one step with all arms, and waits until it is over. Nodes that suffer are those with a pod of the first arm.
pub async fn take(step: Step, arms: &[Arm]) -> Vec<Row> {
    let begin = Instant::now();
    let breaks_before: Vec<usize> = arms.iter().map(|arm| arm.crowd.breaks()).collect();
    let moving = async || {
        let wspool = || arms.iter().zip(&breaks_before).filter(|(arm, _)| arm.way != Way::Nginx);
        while begin.elapsed() < LIMIT && wspool().all(|(arm, before)| arm.crowd.breaks() < before + 3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match step {
        Step::Grow | Step::Shrink | Step::Return => {
            for arm in arms {
                arm.crowd.stay_away(0);
            }
            scale(arms, step.replicas()).await;
        }
        Step::Rollout => {
            let restart = ["rollout", "restart", "deployment/chat"];
            join_all(arms.iter().map(|arm| arm.kubectl(&restart))).await;
        }
        Step::DrainNode => {
            let node = some_node(&arms[0]).await;
            let drain = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=110s"];
            arms[0].kubectl(&drain).await;
            arms[0].kubectl(&["uncordon", &node]).await;
        }
        Step::KillPod => {
            for arm in arms {
                let processes = fault::of_pod(&arm.pod().await);
                processes.iter().filter(|process| !process.command.contains("/pause")).for_each(fault::Process::kill);
            }
        }
        Step::KillProxy => {
            for arm in arms {
                let sidecar = |process: &fault::Process| process.command.contains("wspool-sidecar");
                let proxy = match arm.way {
                    Way::Nginx => fault::with("nginx: worker process"),
                    _ => fault::of_pod(&arm.pod().await).into_iter().find(sidecar).expect("a sidecar"),
                };
                proxy.kill();
            }
        }
        Step::KillOperator => {
            scale(arms, step.replicas()).await;
            moving().await;
            for process in fault::processes().iter().filter(|process| process.command.contains("wspool-operator run")) {
                process.kill();
            }
        }
        Step::HaltApi => {
            scale(arms, step.replicas()).await;
            moving().await;
            let server = fault::with("kube-apiserver");
            server.halt();
            tokio::time::sleep(OUTAGE).await;
            server.go_on();
        }
        Step::Deserters => {
            for arm in arms {
                arm.crowd.stay_away(arm.crowd.lives().len() / 4);
            }
            scale(arms, step.replicas()).await;
        }
        Step::CutCable => {
            let node = some_node(&arms[0]).await;
            fault::cable(&node, "down");
            tokio::time::sleep(CUT).await;
            fault::cable(&node, "up");
        }
        Step::PowerOff => fault::power_off(&some_node(&arms[0]).await),
    }
    let settled = over(step, arms).await;
    let end = Instant::now();
    let row = |(arm, settled): (&Arm, bool)| Row {
        step,
        way: arm.way,
        tally: ledger::tally(&arm.crowd.lives(), begin, end),
        settled,
    };
    arms.iter().zip(settled).map(row).collect()
}

async fn scale(arms: &[Arm], replicas: usize) {
    let replicas = format!("--replicas={replicas}");
    let scale = ["scale", "deployment/chat", &replicas];
    join_all(arms.iter().map(|arm| arm.kubectl(&scale))).await;
}

/// A node with a pod of this arm.
async fn some_node(arm: &Arm) -> String {
    let pods = arm.pods().await;
    let node = pods.iter().find_map(|pod| pod.spec.as_ref()?.node_name.clone());
    node.expect("a pod that has a node")
}

/// Waits until the step is over for all; says for each whether it is.
async fn over(step: Step, arms: &[Arm]) -> Vec<bool> {
    let begin = Instant::now();
    let (mut breaks, mut quiet) = (0, Instant::now());
    loop {
        let now: usize = arms.iter().map(|arm| arm.crowd.breaks()).sum();
        if now != breaks {
            (breaks, quiet) = (now, Instant::now());
        }
        let checks = join_all(arms.iter().map(|arm| arm.is_settled(step.replicas()))).await;
        let present = |arm: &Arm| step == Step::Deserters || arm.crowd.present() == arm.crowd.lives().len();
        let settled: Vec<bool> = arms.iter().zip(checks).map(|(arm, is)| is && present(arm)).collect();
        if (settled.iter().all(|is| *is) && quiet.elapsed() >= QUIET) || begin.elapsed() >= LIMIT {
            return settled;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
