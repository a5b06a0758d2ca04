//! From what is known of a pool to what its driver is told: the checked pool, its members, and how many slots there should be.

use std::time::Duration;

use tokio::sync::watch;

use super::ask::Kube;
use super::index::{PoolKey, PoolState};
use super::pod::PodFacts;
use super::target::{Scaled, Target, TargetError};
use super::trouble::{self, Trouble};
use crate::driver::{Entry, Input, Unlisted};
use crate::planner::Role;
use crate::pool::{CheckedPool, WebSocketPool, check};

/// The target is looked at this often even when no pod changes: one that cannot make pods changes none.
const INTERVAL: Duration = Duration::from_secs(10);
/// The least time between two looks: while a pool forms, or is rolled out, it changes with each of its pods.
const PAUSE: Duration = Duration::from_millis(50);
/// How long passes before an API server that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a slot's new address takes to be written and to reach those who send clients there.
const LEAD: Duration = Duration::from_millis(500);

/// The target as it was read last.
#[derive(Clone, Default)]
pub struct Seen {
    /// What it is.
    pub target: Option<Target>,
    /// Its scale.
    pub scaled: Option<Scaled>,
}

/// Why a pool cannot be driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In one word.
    pub reason: &'static str,
    /// In sentences.
    pub message: String,
}

/// Feeds one pool.
pub struct Feeder {
    kube: Kube,
    key: PoolKey,
    /// The image that injected sidecars have; `None` where this operator injects none.
    image: Option<String>,
    state: watch::Receiver<PoolState>,
    seen: watch::Sender<Seen>,
    /// The last pool without faults.
    good: Option<CheckedPool>,
}

/// What a look came to.
enum Look {
    Input(Box<Input>),
    Refused(Refused),
    /// The API server did not answer.
    Again,
}

impl Feeder {
    /// A feeder of a pool, and what it sees of its target.
    pub fn new(
        kube: Kube,
        key: PoolKey,
        image: Option<String>,
        state: watch::Receiver<PoolState>,
    ) -> (Self, watch::Receiver<Seen>) {
        let (seen, watched) = watch::channel(Seen::default());
        (Self { kube, key, image, state, seen, good: None }, watched)
    }

    /// The first input, or why there is none yet.
    pub async fn first(&mut self) -> Result<Input, Refused> {
        loop {
            match self.look().await {
                Look::Input(input) => return Ok(*input),
                Look::Refused(refused) => return Err(refused),
                Look::Again => self.wait(AGAIN).await,
            }
        }
    }

    /// Waits until something has changed that a refusal may be due to.
    pub async fn changed(&mut self) {
        self.wait(INTERVAL).await;
    }

    /// Feeds for ever.
    pub async fn feed(&mut self, inputs: &watch::Sender<Input>) {
        let mut pause = INTERVAL;
        loop {
            tokio::time::sleep(PAUSE).await;
            self.wait(pause).await;
            pause = match self.look().await {
                Look::Input(input) => {
                    inputs.send_if_modified(|before| std::mem::replace(before, (*input).clone()) != *input);
                    INTERVAL
                }
                Look::Refused(_) => INTERVAL,
                Look::Again => AGAIN,
            };
        }
    }

    async fn wait(&mut self, at_most: Duration) {
        tokio::select! {
            changed = self.state.changed() => if changed.is_err() {
                // The index lives as long as the process.
                std::future::pending::<()>().await;
            },
            () = tokio::time::sleep(at_most) => {}
        }
    }

    async fn look(&mut self) -> Look {
        let (pool, pods, elder) = {
            let state = self.state.borrow_and_update();
            (state.pool.clone(), state.pods.values().cloned().collect::<Vec<_>>(), state.elder.clone())
        };
        let Some(pool) = pool else { return Look::Again };
        let mut troubles = Vec::new();
        match check::check(&pool, None) {
            Ok(mut checked) => {
                checked.pace.lead = LEAD;
                self.good = Some(checked);
            }
            Err(faults) => troubles.push(("InvalidPool", faults.to_string())),
        }
        let Some(good) = self.good.clone() else {
            let (reason, message) = troubles.remove(0);
            return Look::Refused(Refused { reason, message });
        };
        let scaled = match self.read_scale(&pool, elder.is_some()).await {
            Ok(scaled) => scaled,
            Err(TargetError::Ask(error)) => {
                tracing::warn!(pool = %self.key, %error, "the target cannot be read");
                return Look::Again;
            }
            Err(error @ TargetError::Kind(_)) => {
                troubles.push(("UnknownTarget", error.to_string()));
                None
            }
            Err(error @ TargetError::Missing(_)) => {
                troubles.push(("TargetNotFound", error.to_string()));
                None
            }
        };
        if let (Some(elder), Some(target)) = (elder, &pool.spec.target) {
            let sentence = format!(
                "{} {} is the target of the older pool {elder} too, and is left to it: correct spec.target, or delete one \
                 of the two",
                target.kind, target.name
            );
            troubles.push(("TargetTaken", sentence));
        }
        troubles.extend(trouble::of_pods(&good, &pods, self.image.as_deref()));
        Look::Input(Box::new(input(good, &pool, &pods, scaled.as_ref(), troubles)))
    }

    /// Reads the target's scale anew, before each plan. Another pool's target is left alone.
    async fn read_scale(&mut self, pool: &WebSocketPool, is_taken: bool) -> Result<Option<Scaled>, TargetError> {
        let Some(of) = pool.spec.target.as_ref().filter(|_| !is_taken) else {
            self.seen.send_replace(Seen::default());
            return Ok(None);
        };
        let known = self.seen.borrow().target.clone().filter(|target| target.of() == of);
        let target = match known {
            Some(target) => target,
            None => Target::find(&self.kube, &self.key.namespace, of).await?,
        };
        let scaled = target.scale().await;
        let seen = Seen { target: Some(target), scaled: scaled.as_ref().ok().cloned() };
        self.seen.send_replace(seen);
        scaled.map(Some)
    }
}

/// What a driver is told.
fn input(
    pool: CheckedPool,
    resource: &WebSocketPool,
    pods: &[PodFacts],
    scaled: Option<&Scaled>,
    mut troubles: Vec<Trouble>,
) -> Input {
    if resource.spec.target.is_none() {
        troubles.push(("NoTarget", "spec.target is missing: name the workload whose pods form the pool".to_owned()));
    }
    if let (Some(scaled), Some(target)) = (scaled, &resource.spec.target)
        && scaled.replicas > 0
        && !pods.iter().any(|pod| pod.role == Role::App)
    {
        let sentence = format!(
            "{} {} has pods, and none with the label wspool.dev/pool: {}: add it to the pod template",
            target.kind, target.name, pool.name
        );
        troubles.push((trouble::NO_MEMBERS, sentence));
    }
    let apps = pods.iter().filter(|pod| pod.role == Role::App && pod.stays()).count();
    let wanted = pool.replicas.or(scaled.map(|scaled| scaled.desired));
    Input {
        // Without a target that could say how many there should be, those that are there should.
        desired: wanted.map_or(apps, |wanted| usize::try_from(wanted).unwrap_or(usize::MAX)),
        entries: entries(pods),
        pool,
        unlisted: Unlisted::IsGone,
        troubles,
    }
}

/// Pods that are members, oldest first: they get the lowest slots.
fn entries(pods: &[PodFacts]) -> Vec<Entry> {
    let mut pods: Vec<&PodFacts> = pods.iter().collect();
    pods.sort_by_key(|pod| (pod.ordinal, pod.created, pod.name.as_str()));
    pods.into_iter().filter_map(PodFacts::entry).collect()
}
