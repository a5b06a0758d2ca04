//! Pods that went, and how.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use k8s_openapi::jiff::Timestamp;
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

    /// How a container of it ended.
    pub fn end_of(&self, container: &str) -> ContainerStateTerminated {
        let status = self.pod.status.iter();
        let mut statuses = status.flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
        let status = statuses.find(|status| status.name == container);
        let end = status.and_then(|status| status.state.as_ref()?.terminated.clone());
        end.unwrap_or_else(|| panic!("{container} of {} did not end: {status:?}", self.name()))
    }

    /// What the app said at its end, as `tests/node/pod-server.js` does.
    pub fn last_words(&self) -> Value {
        let end = self.end_of("chat");
        let said = end.message.as_deref().and_then(|message| serde_json::from_str(message).ok());
        said.unwrap_or_else(|| panic!("{} said nothing at its end: {end:?}", self.name()))
    }

    /// Checks that it went as pods should: empty, in time, and by its own will. 137 would be a kill.
    pub fn check(&self) {
        assert_eq!(self.last_words()["connections"], 0, "{}", self.name());
        for container in ["chat", "wspool-sidecar"] {
            let (name, end) = (self.name(), self.end_of(container));
            assert_eq!(end.exit_code, 0, "{container} of {name}: {end:?}");
            self.check_time(container);
        }
    }

    /// Checks that a container ended within the pod's grace period.
    pub fn check_time(&self, container: &str) {
        let finished = self.end_of(container).finished_at.expect("an end has a time").0;
        let (name, deadline) = (self.name(), self.deadline);
        assert!(finished <= deadline, "{container} of {name} ended at {finished}, after {deadline}");
    }
}

/// The pods of a namespace that went.
pub(super) struct Departures {
    gone: Arc<Mutex<Vec<Departure>>>,
    watching: JoinHandle<()>,
}

impl Departures {
    pub(super) fn watch(namespace: &Namespace) -> Self {
        let gone = Arc::<Mutex<Vec<Departure>>>::default();
        let (pods, seen): (Api<Pod>, _) = (namespace.api(), Arc::clone(&gone));
        let watching = tokio::spawn(async move {
            let mut deadlines = BTreeMap::new();
            let config = watcher::Config::default().timeout(WATCH_SECONDS);
            let mut events = pin!(watcher(pods, config));
            while let Some(event) = events.try_next().await.expect("the watch of pods goes on") {
                match event {
                    Event::Apply(pod) | Event::InitApply(pod) => {
                        if let Some(deadline) = &pod.metadata.deletion_timestamp {
                            deadlines.entry(pod.uid()).or_insert(deadline.0);
                        }
                    }
                    Event::Delete(pod) => {
                        let deadline = deadlines.remove(&pod.uid()).expect("it was told to go before it went");
                        seen.lock().unwrap_or_else(PoisonError::into_inner).push(Departure { pod, deadline });
                    }
                    Event::Init | Event::InitDone => {}
                }
            }
        });
        Self { gone, watching }
    }

    /// Those that had the sidecar.
    pub(super) fn injected(&self) -> Vec<Departure> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.iter().filter(|gone| gone.pod.labels().contains_key("wspool.dev/pool")).cloned().collect()
    }
}

impl Drop for Departures {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
