//! Pods that went, and how.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::control_plane::Namespace;

/// A watch goes on after so long where it ended, before the client takes a quiet one for dead.
const WATCH_SECONDS: u32 = 10;

/// A pod that went.
#[derive(Clone, Debug)]
pub struct Departure {
    /// As it was at last.
    pod: Pod,
    /// When its grace period was to end. Whoever removes the object in the end writes another time there.
    deadline: Timestamp,
}

impl Departure {
    /// Its name.
    pub fn name(&self) -> String {
        self.pod.name_any()
    }

    /// How a container of it ended, if its node has said so.
    fn end(&self, container: &str) -> Option<ContainerStateTerminated> {
        let status = self.pod.status.iter();
        let mut statuses = status.flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
        statuses.find(|status| status.name == container)?.state.as_ref()?.terminated.clone()
    }

    /// How a container of it ended.
    pub fn end_of(&self, container: &str) -> ContainerStateTerminated {
        self.end(container).unwrap_or_else(|| panic!("{container} of {} did not end", self.name()))
    }

    /// What the app said at its end, as `tests/node/pod-server.js` does.
    pub fn last_words(&self) -> Value {
        self.words().unwrap_or_else(|| panic!("{} said nothing at its end: {:?}", self.name(), self.end("chat")))
    }

    fn words(&self) -> Option<Value> {
        serde_json::from_str(self.end("chat")?.message.as_deref()?).ok()
    }

    /// Checks that it went as pods should.
    pub fn check(&self) {
        assert_eq!(self.fault(), None, "{}", self.name());
    }

    /// What was wrong with how it went. Pods should go empty, in time, and by their own will: 137 would be a kill.
    pub fn fault(&self) -> Option<String> {
        for container in ["chat", "wspool-sidecar"] {
            let Some(end) = self.end(container) else { return Some(format!("nobody saw how its {container} ended")) };
            if end.exit_code != 0 {
                return Some(format!("its {container} ended with {}", end.exit_code));
            }
        }
        match self.words().and_then(|words| words["connections"].as_u64()) {
            Some(0) => self.lateness("chat").or_else(|| self.lateness("wspool-sidecar")),
            Some(left) => Some(format!("{left} connections were left")),
            None => Some("its app said nothing".to_owned()),
        }
    }

    /// Checks that a container ended within the pod's grace period.
    pub fn check_time(&self, container: &str) {
        assert_eq!(self.lateness(container), None, "{}", self.name());
    }

    fn lateness(&self, container: &str) -> Option<String> {
        let finished = self.end_of(container).finished_at.expect("an end has a time").0;
        let late = finished > self.deadline;
        late.then(|| format!("its {container} ended at {finished}, after {}", self.deadline))
    }
}

/// The pods of a namespace that went.
pub struct Departures {
    gone: Arc<Mutex<Vec<Departure>>>,
    watching: JoinHandle<()>,
}

impl Departures {
    /// Those of this namespace, from now on.
    pub fn watch(namespace: &Namespace) -> Self {
        let gone = Arc::<Mutex<Vec<Departure>>>::default();
        let (pods, seen): (Api<Pod>, _) = (namespace.api(), Arc::clone(&gone));
        let watching = tokio::spawn(async move {
            let mut deadlines = BTreeMap::new();
            let config = watcher::Config::default().timeout(WATCH_SECONDS);
            // An API server that is away comes back.
            let mut events = pin!(watcher(pods, config).default_backoff());
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                match event {
                    Event::Apply(pod) | Event::InitApply(pod) => {
                        if let Some(deadline) = &pod.metadata.deletion_timestamp {
                            deadlines.entry(pod.uid()).or_insert(deadline.0);
                        }
                    }
                    Event::Delete(pod) => {
                        let Some(deadline) = deadlines.remove(&pod.uid()) else { continue };
                        seen.lock().unwrap_or_else(PoisonError::into_inner).push(Departure { pod, deadline });
                    }
                    Event::Init | Event::InitDone => {}
                }
            }
        });
        Self { gone, watching }
    }

    /// Those that had the sidecar beside their app.
    pub fn injected(&self) -> Vec<Departure> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |gone: &&Departure, label| gone.pod.labels().contains_key(label);
        gone.iter().filter(|gone| has(gone, "wspool.dev/pool") && !has(gone, "wspool.dev/role")).cloned().collect()
    }
}

impl Drop for Departures {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
