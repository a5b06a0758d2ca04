//! Carries placements, grants, loads, pins and questions to one sidecar, one at a time, so that a slow one never delays the others.

use std::sync::{Arc, Mutex, PoisonError};

use ring::Version;
use ring::wire::{Grant, Loads, Placed, PodPin, Report, Told};
use tokio::sync::{Notify, mpsc};

use crate::control::{Control, ControlError, Written};

/// What a sidecar has answered, or why it has not.
#[derive(Debug)]
pub struct Answer {
    /// The member that the courier serves.
    pub member: u64,
    /// The answer.
    pub result: Result<Report, ControlError>,
}

/// Where a courier goes.
#[derive(Clone, Debug)]
pub struct Route {
    /// The member that it serves.
    pub member: u64,
    /// The control port.
    pub address: String,
    /// Its pod's UID, where that is known beforehand: addresses are reused.
    pub uid: Option<String>,
}

/// What waits to be carried. A newer placement, grant or count takes the place of one that still waits.
#[derive(Debug, Default)]
struct Waiting {
    placed: Option<(String, Arc<Written>)>,
    grant: Option<Grant>,
    loads: Option<(String, Arc<Loads>)>,
    /// With the leader's term.
    pin: Option<(u64, PodPin)>,
    question: bool,
    closed: bool,
}

/// Where a courier finds what to carry.
#[derive(Clone, Debug, Default)]
pub struct Mailbox {
    waiting: Arc<(Mutex<Waiting>, Notify)>,
}

impl Mailbox {
    /// A placement for the sidecar with this UID.
    pub fn place(&self, uid: String, placement: Arc<Written>) {
        self.put(|waiting| waiting.placed = Some((uid, placement)));
    }

    /// A grant.
    pub fn grant(&self, grant: Grant) {
        self.put(|waiting| waiting.grant = Some(grant));
    }

    /// What the slots hold, for the sidecar with this UID.
    pub fn tell(&self, uid: String, loads: Arc<Loads>) {
        self.put(|waiting| waiting.loads = Some((uid, loads)));
    }

    /// Whether the sidecar's pod is pinned.
    pub fn pin(&self, term: u64, pin: PodPin) {
        self.put(|waiting| waiting.pin = Some((term, pin)));
    }

    /// A question how it is, unless something else is carried that is answered with the same.
    pub fn ask(&self) {
        self.put(|waiting| waiting.question = true);
    }

    /// A question that came while something was carried has its answer.
    fn answered(&self) {
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).question = false;
    }

    /// Ends the courier after what it carries now.
    pub fn close(&self) {
        self.put(|waiting| waiting.closed = true);
    }

    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        let (waiting, notify) = &*self.waiting;
        change(&mut waiting.lock().unwrap_or_else(PoisonError::into_inner));
        notify.notify_one();
    }

    fn take(&self) -> Waiting {
        let mut waiting = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = waiting.closed;
        Waiting { closed, ..std::mem::take(&mut *waiting) }
    }

    /// Takes the question out, if there is one.
    #[cfg(test)]
    pub fn take_question(&self) -> bool {
        std::mem::take(&mut self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).question)
    }

    async fn next(&self) -> Waiting {
        loop {
            let waiting = self.take();
            let carries = waiting.placed.is_some() || waiting.grant.is_some() || waiting.loads.is_some();
            if waiting.closed || waiting.question || waiting.pin.is_some() || carries {
                return waiting;
            }
            self.waiting.1.notified().await;
        }
    }
}

/// Serves one member's control port until its mailbox is closed.
pub async fn serve(route: Route, mailbox: Mailbox, control: Control, answers: mpsc::Sender<Answer>) {
    let Route { member, address, uid } = route;
    // What the sidecar said last that it has.
    let mut has = (String::new(), Version::default());
    loop {
        let Waiting { placed, grant, loads, pin, question, closed } = mailbox.next().await;
        if closed {
            return;
        }
        // While one was on its way to a slow sidecar it was published again.
        let placed = placed.filter(|(_, written)| {
            let placement = written.placement();
            (&placement.pool_uid, placement.version) != (&has.0, has.1)
        });
        let mut results = Vec::with_capacity(3);
        // Each is answered with the same report, so a question is asked only when nothing else is carried.
        let asks = question && placed.is_none() && grant.is_none() && loads.is_none();
        if let Some((target, written)) = placed {
            results.push(control.place(&address, &Placed { target, placement: &*written }).await);
        }
        if let Some(grant) = grant {
            results.push(control.grant(&address, &grant).await);
        }
        if let Some((target, loads)) = loads {
            results.push(control.tell(&address, &Told { target, loads: &*loads }).await);
        }
        // A sidecar of an older release knows no pins, and is well all the same.
        if let Some((term, pin)) = pin
            && let Ok(report) = control.pin(&address, term, &pin).await
        {
            results.push(Ok(report));
        }
        if asks {
            results.push(control.status(&address, uid.as_deref()).await);
        }
        mailbox.answered();
        for result in results {
            let result = result.and_then(|report| meant(report, uid.as_deref(), &address));
            if let Ok(report) = &result {
                has = (report.pool_uid.clone(), report.version);
            }
            if answers.send(Answer { member, result }).await.is_err() {
                return;
            }
        }
    }
}

/// The report, if it is of the sidecar that was meant.
fn meant(report: Report, uid: Option<&str>, address: &str) -> Result<Report, ControlError> {
    match uid {
        Some(uid) if report.uid != uid => {
            let why = format!("it is the sidecar of the pod {:?}, not of {uid:?}", report.uid);
            Err(ControlError::Malformed { address: address.to_owned(), why })
        }
        _ => Ok(report),
    }
}
