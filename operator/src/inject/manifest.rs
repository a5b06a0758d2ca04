//! Manifests: streams of YAML documents, some of which have pods to inject.
//!
//! A document without such a pod is passed on byte for byte. One with such a pod is passed on with the additions in it.

use json_patch::AddOperation;
use json_patch::jsonptr::PointerBuf;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use super::yaml::Node;
use super::{Injection, POOL_LABEL, PoolFacts, Sidecar, Verdict, inject, splice};
use crate::pool::WebSocketPool;

/// A stream of documents that has been read.
#[derive(Debug)]
pub struct Manifest {
    documents: Vec<Document>,
}

#[derive(Debug)]
struct Document {
    /// Where it is, for people: `deployment.yaml, document 2`.
    place: String,
    /// The line that begins it, or as much of that line as is not content.
    marker: String,
    body: String,
    value: Value,
}

/// Pools that stand in manifests, beside the workloads.
#[derive(Debug, Default)]
pub struct Pools(Vec<WebSocketPool>);

/// One thing that is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Fault {
    place: String,
    what: String,
}

/// A workload that was injected, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// `Deployment chat`.
    pub object: String,
    /// What was added; `None` if the sidecar was there already.
    pub injection: Option<Injection>,
}

impl Manifest {
    /// Reads a stream. `source` is its name in errors.
    pub fn read(source: &str, text: &str) -> Result<Self, Fault> {
        let mut documents = Vec::new();
        for (index, (marker, body)) in split(text).into_iter().enumerate() {
            let place = format!("{source}, document {}", index + 1);
            match Node::parse(body) {
                Ok(root) => documents.push(Document {
                    place,
                    marker: marker.to_owned(),
                    body: body.to_owned(),
                    value: root.map_or(Value::Null, |root| root.value()),
                }),
                Err(error) => return Err(Fault { place, what: error.to_string() }),
            }
        }
        Ok(Self { documents })
    }

    /// Collects the pools that stand in it.
    pub fn collect_pools(&self, pools: &mut Pools) -> Result<(), Fault> {
        for document in self.documents.iter().filter(|document| is_pool(&document.value)) {
            let pool = WebSocketPool::from_yaml(&document.body);
            pools.0.push(pool.map_err(|error| Fault { place: document.place.clone(), what: error.to_string() })?);
        }
        Ok(())
    }

    /// Injects every pod that asks for it, says into which, and collects all faults.
    pub fn inject(&mut self, pools: &Pools, sidecar: &Sidecar, injected: &mut Vec<Injected>, faults: &mut Vec<Fault>) {
        for Document { place, body, value, .. } in &mut self.documents {
            let mut edits = Vec::new();
            for (at, object) in objects(value) {
                let name = object.get("metadata").and_then(|m| text(m, "name").or(text(m, "generateName")));
                let name = format!("{} {}", text(object, "kind").unwrap_or_default(), name.unwrap_or("without a name"));
                let injection = match inject_object(object, pools, sidecar) {
                    Ok(Verdict::NotAsked) => continue,
                    Ok(Verdict::AlreadyInjected) => None,
                    Ok(Verdict::Inject(injection)) => Some(injection),
                    Err(error) => {
                        faults.push(Fault { place: place.clone(), what: format!("{name}: {error}") });
                        continue;
                    }
                };
                for AddOperation { path, value } in injection.iter().flat_map(|injection| &injection.edits) {
                    let path = format!("{at}{}{path}", template_path(object));
                    edits.extend(PointerBuf::parse(path).map(|path| AddOperation { path, value: value.clone() }));
                }
                injected.push(Injected { object: name, injection });
            }
            if edits.is_empty() {
                continue;
            }
            match splice::apply(body, value, &edits) {
                Some(text) => *body = text,
                None => faults.push(Fault { place: place.clone(), what: "it has no place for the sidecar".to_owned() }),
            }
        }
    }

    /// Appends its text to a stream.
    pub fn write(&self, stream: &mut String) {
        for Document { marker, body, .. } in &self.documents {
            if !stream.is_empty() && !stream.ends_with('\n') {
                stream.push('\n');
            }
            match marker.as_str() {
                "" if stream.is_empty() => {}
                "" => stream.push_str("---\n"),
                marker => stream.push_str(marker),
            }
            let glued = marker.ends_with("---") && !body.starts_with([' ', '\t', '\r', '\n']);
            if glued {
                stream.push('\n');
            }
            stream.push_str(body);
        }
    }
}

/// Splits a stream at the lines that begin with `---`, which YAML reserves for that, into markers and bodies.
fn split(text: &str) -> Vec<(&str, &str)> {
    let begins = |line: &str| {
        line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if begins(line) && at > 0 {
            starts.push(at);
        }
        at += line.len();
    }
    starts.push(text.len());
    let parts = starts.windows(2).map(|ends| &text[ends[0]..ends[1]]);
    let parts = parts.map(|part| {
        let line = part.split_inclusive('\n').next().unwrap_or_default();
        if !begins(line) {
            return ("", part);
        }
        let rest = line[3..].trim();
        part.split_at(if rest.is_empty() || rest.starts_with('#') { line.len() } else { 3 })
    });
    parts.filter(|(marker, body)| !(marker.is_empty() && body.is_empty())).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}

fn is_pool(value: &Value) -> bool {
    text(value, "kind") == Some("WebSocketPool")
        && text(value, "apiVersion").is_some_and(|version| version.starts_with("wspool.dev/"))
}

/// Every object in a document, itself or in a list, with its path.
fn objects(value: &Value) -> Vec<(PointerBuf, &Value)> {
    let Some(items) = value.get("items").and_then(Value::as_array) else { return vec![(PointerBuf::new(), value)] };
    let numbered = items.iter().enumerate();
    numbered.map(|(index, item)| (PointerBuf::from_tokens(["items".to_owned(), index.to_string()]), item)).collect()
}

/// Decides on one object.
fn inject_object(object: &Value, pools: &Pools, sidecar: &Sidecar) -> Result<Verdict, Box<dyn std::error::Error>> {
    let Some(pod) = object.pointer(template_path(object)).filter(|pod| asks(pod)) else { return Ok(Verdict::NotAsked) };
    let pod: PodTemplateSpec = serde_json::from_value(pod.clone())?;
    let namespace = object.get("metadata").and_then(|metadata| text(metadata, "namespace"));
    let (metadata, spec) = (pod.metadata.unwrap_or_default(), pod.spec.unwrap_or_default());
    Ok(inject(&metadata, &spec, sidecar, |name| pools.facts(namespace, name))?)
}

/// Where an object has its pod, or its pod template: what has `metadata` and the pod's `spec`.
fn template_path(object: &Value) -> &'static str {
    match text(object, "kind") {
        Some("Pod") => "",
        Some("CronJob") => "/spec/jobTemplate/spec/template",
        _ => "/spec/template",
    }
}

fn asks(template: &Value) -> bool {
    template.get("metadata").and_then(|m| m.get("labels")).is_some_and(|labels| labels.get(POOL_LABEL).is_some())
}

impl Pools {
    /// What is known of a pool. A namespace that is not written can be any.
    fn facts(&self, namespace: Option<&str>, name: &str) -> Option<PoolFacts> {
        let same = |pool: &&WebSocketPool| {
            let other = pool.metadata.namespace.as_deref();
            let namespace_fits = namespace.zip(other).is_none_or(|(one, other)| one == other);
            pool.metadata.name.as_deref() == Some(name) && namespace_fits
        };
        self.0.iter().find(same).map(PoolFacts::from)
    }
}
