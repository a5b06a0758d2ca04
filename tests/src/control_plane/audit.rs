//! What a service account has asked of the API server, by the audit log: each request, also one that changed nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use serde::Deserialize;

use super::Access;

/// The file of the log, in the folder of a control plane.
pub(super) const LOG: &str = "audit.log";
/// Only the requests of those whom tests start: the controllers' accounts are in kube-system.
pub(super) const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived", "ResponseStarted"],
  "rules": [
    {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
    {"level": "Metadata", "userGroups": ["system:serviceaccounts"]}
  ]
}
"#;

/// A kind of request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// `create`, `patch` (also what was applied), `get` and so on.
    pub verb: String,
    /// The resource, with its subresource: `pods/status`.
    pub resource: String,
}

impl Asked {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// The log of one account, from some time on.
#[derive(Debug)]
pub struct Audit {
    log: PathBuf,
    account: String,
    read: u64,
}

impl Audit {
    /// The log of a service account, from its beginning.
    pub fn of(access: &Access, namespace: &str, account: &str) -> Self {
        let account = format!("system:serviceaccount:{namespace}:{account}");
        Self { log: access.folder().join(LOG), account, read: 0 }
    }

    /// What was asked and answered since the last call.
    pub fn take(&mut self) -> BTreeMap<Asked, u64> {
        let mut counts = BTreeMap::new();
        for (asked, _) in self.events() {
            *counts.entry(asked).or_default() += 1;
        }
        counts
    }

    /// The resources of which a write came too late since the last call: somebody else's was before it.
    pub fn take_conflicts(&mut self) -> BTreeSet<String> {
        let conflicts = self.events().into_iter().filter(|(_, code)| *code == 409);
        conflicts.map(|(asked, _)| asked.resource).collect()
    }

    /// The requests since the last call, with the status of their answers.
    fn events(&mut self) -> Vec<(Asked, u16)> {
        let text = self.text().unwrap_or_else(|error| panic!("{}: {error}", self.log.display()));
        // The last line may still be written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        let mut events = Vec::new();
        for line in text[..whole].lines() {
            let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
            let Some(object) = event.object_ref.filter(|_| event.user.username == self.account) else { continue };
            let resource = match object.subresource {
                Some(subresource) => format!("{}/{subresource}", object.resource),
                None => object.resource,
            };
            events.push((Asked { verb: event.verb, resource }, event.response_status.map_or(0, |status| status.code)));
        }
        events
    }

    fn text(&self) -> std::io::Result<String> {
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        Ok(text)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    code: u16,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct Object {
    resource: String,
    subresource: Option<String>,
}
