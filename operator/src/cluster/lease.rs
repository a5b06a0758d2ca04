//! Which replica leads: whoever holds the Lease.
//!
//! The Lease is read and written with its resourceVersion, never patched and never retried by the client. A holder that
//! cannot renew it stops by itself at a deadline on its own clock, well before another one may take it: nobody's wall clock
//! is trusted, and the other counts only from when it saw the Lease change last.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::watch;

use super::ask::{AskError, Kube, if_there};

/// How long a Lease that nobody renews belongs to its holder.
pub const DURATION: Duration = Duration::from_secs(10);
/// How long a holder leads after its last renewal began.
pub const DEADLINE: Duration = Duration::from_secs(6);
/// How long a request may take: a read and a write fit into the deadline, with time left for another try.
const REQUEST: Duration = Duration::from_secs(2);
/// How often it is renewed, and looked at by the others.
const PERIOD: Duration = Duration::from_secs(2);

/// What a Lease says, as far as the election goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// When it was written last, by its holder's clock: only a sign that it was.
    pub renewed: Option<Timestamp>,
    /// How often it has changed hands.
    pub transitions: i32,
}

/// One replica's view of the election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    /// What was seen last, and since when.
    seen: Option<(Record, Instant)>,
    /// When the last renewal began that succeeded.
    renewed: Option<Instant>,
}

/// What to do with the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write it with this number of transitions.
    Write {
        /// How often it has changed hands then.
        transitions: i32,
    },
    /// Nothing: somebody else holds it.
    Wait,
}

impl Election {
    /// A replica that has seen nothing yet. No two may have one identity, not even one after another.
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, renewed: None }
    }

    /// Decides what to do with the Lease as it was found.
    pub fn decide(&mut self, found: Option<&Record>, now: Instant) -> Step {
        let Some(found) = found else { return Step::Write { transitions: 0 } };
        if found.holder == self.identity {
            return Step::Write { transitions: found.transitions };
        }
        // Whatever it believed, somebody else has written it.
        self.renewed = None;
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != found) {
            self.seen = Some((found.clone(), now));
        }
        let untouched = self.seen.as_ref().is_some_and(|(_, since)| now >= *since + DURATION);
        if found.holder.is_empty() || untouched {
            return Step::Write { transitions: found.transitions.saturating_add(1) };
        }
        Step::Wait
    }

    /// The Lease was written; `began` is when the round began.
    pub fn written(&mut self, began: Instant) {
        self.renewed = Some(began);
    }

    /// Until when it leads.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + DEADLINE)
    }
}

/// The Lease of this operator.
#[derive(Clone)]
pub struct Candidate {
    kube: Kube,
    leases: Api<Lease>,
    name: String,
    identity: String,
}

impl Candidate {
    /// A replica that stands for election.
    pub fn new(kube: &Kube, namespace: &str, name: &str, pod_uid: &str) -> Self {
        let kube = kube.apart(REQUEST);
        // A container that was restarted in its pod is another candidate.
        let identity = format!("{pod_uid}_{:016x}", rand::random::<u64>());
        Self { leases: Api::namespaced(kube.client(), namespace), kube, name: name.to_owned(), identity }
    }

    /// Stands for election until told to stop, and says until when it leads. Then it gives the Lease back.
    pub async fn run(self, leads_until: watch::Sender<Option<Instant>>, mut stop: watch::Receiver<bool>) {
        let mut election = Election::new(self.identity.clone());
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Nobody left who could tell is the same as being told.
                _ = stop.wait_for(|stop| *stop) => break,
                _ = period.tick() => {}
            }
            if let Err(error) = self.round(&mut election).await {
                tracing::warn!(%error, "the lease is not settled");
            }
            leads_until.send_if_modified(|until| {
                let now = election.leads_until();
                std::mem::replace(until, now) != now
            });
        }
        leads_until.send_replace(None);
        if election.leads_until().is_some()
            && let Err(error) = self.give_back().await
        {
            tracing::warn!(%error, "the lease was not given back; it ends by itself");
        }
    }

    async fn round(&self, election: &mut Election) -> Result<(), AskError> {
        let began = Instant::now();
        let found = self.read().await?;
        match election.decide(found.as_ref().map(record).as_ref(), Instant::now()) {
            Step::Wait => Ok(()),
            Step::Write { transitions } => {
                self.write(found, spec(&self.identity, transitions)).await?;
                election.written(began);
                Ok(())
            }
        }
    }

    async fn give_back(&self) -> Result<(), AskError> {
        match self.read().await? {
            Some(lease) if record(&lease).holder == self.identity => {
                let spec = spec("", record(&lease).transitions);
                self.write(Some(lease), spec).await
            }
            _ => Ok(()),
        }
    }

    async fn read(&self) -> Result<Option<Lease>, AskError> {
        if_there(self.kube.ask("get", self.object(), self.leases.get(&self.name)).await)
    }

    async fn write(&self, found: Option<Lease>, spec: LeaseSpec) -> Result<(), AskError> {
        let params = PostParams::default();
        match found {
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                self.kube.ask("create", self.object(), self.leases.create(&params, &lease)).await?;
            }
            // It is sent with the resourceVersion that was read.
            Some(mut lease) => {
                lease.spec = Some(spec);
                self.kube.ask("update", self.object(), self.leases.replace(&self.name, &params, &lease)).await?;
            }
        }
        Ok(())
    }

    fn object(&self) -> String {
        format!("the Lease {}", self.name)
    }
}

fn spec(holder: &str, transitions: i32) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: None,
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|time| time.0),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn held_by(holder: &str, renewed: i64) -> Record {
        let renewed = Timestamp::from_second(renewed).unwrap();
        Record { holder: holder.into(), renewed: Some(renewed), transitions: 4 }
    }

    #[test]
    fn a_lease_that_is_missing_or_given_back_is_taken_at_once() {
        let now = Instant::now();
        let mut me = Election::new("me".into());
        assert_eq!(me.decide(None, now), Step::Write { transitions: 0 });
        assert_eq!(me.decide(Some(&held_by("", 1)), now), Step::Write { transitions: 5 });
    }

    #[test]
    fn anothers_lease_is_taken_only_after_it_stood_still_for_its_duration() {
        let now = Instant::now();
        let mut me = Election::new("me".into());
        assert_eq!(me.decide(Some(&held_by("other", 1)), now), Step::Wait);
        assert_eq!(me.decide(Some(&held_by("other", 1)), now + 4 * SECOND), Step::Wait);
        assert_eq!(me.decide(Some(&held_by("other", 2)), now + DURATION), Step::Wait, "it was renewed");
        assert_eq!(me.decide(Some(&held_by("other", 2)), now + 2 * DURATION), Step::Write { transitions: 5 });
    }

    #[test]
    fn a_clock_that_is_hours_off_changes_nothing() {
        let now = Instant::now();
        let mut me = Election::new("me".into());
        for renewed in [0, 4_000_000_000] {
            assert_eq!(me.decide(Some(&held_by("other", renewed)), now), Step::Wait);
        }
    }

    #[test]
    fn a_holder_stops_before_another_may_take_the_lease_even_when_its_last_write_took_long() {
        let began = Instant::now();
        let mut me = Election::new("me".into());
        assert_eq!(me.leads_until(), None);
        me.decide(Some(&held_by("", 1)), began);
        me.written(began);
        let mut other = Election::new("other".into());
        other.decide(Some(&held_by("me", 1)), began);
        let until = me.leads_until().unwrap();
        assert_eq!(other.decide(Some(&held_by("me", 1)), until), Step::Wait);
        assert!(until < began + DURATION);
    }

    #[test]
    fn a_holder_that_finds_anothers_name_leads_no_more() {
        let now = Instant::now();
        let mut me = Election::new("me".into());
        me.written(now);
        assert_eq!(me.decide(Some(&held_by("me", 1)), now), Step::Write { transitions: 4 });
        assert!(me.leads_until().is_some());
        assert_eq!(me.decide(Some(&held_by("other", 1)), now), Step::Wait);
        assert_eq!(me.leads_until(), None);
    }
}
