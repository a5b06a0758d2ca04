//! Manifests: streams of YAML documents, some of which have pods to inject.
//!
//! A document without such a pod is passed on byte for byte. One with such a pod keeps its fields and their order, also
//! unknown ones; its comments are lost.

use json_patch::AddOperation;
use json_patch::jsonptr::Pointer;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_yaml::Value;

use super::{Injection, POOL_LABEL, PoolFacts, Sidecar, Verdict, inject};
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
            match serde_yaml::from_str(body) {
                Ok(value) => {
                    documents.push(Document { place, marker: marker.to_owned(), body: body.to_owned(), value });
                }
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
        for document in &mut self.documents {
            let before = injected.len();
            if let Err(what) = inject_document(&mut document.value, pools, sidecar, injected) {
                faults.push(Fault { place: document.place.clone(), what });
                continue;
            }
            if injected[before..].iter().all(|injected| injected.injection.is_none()) {
                continue;
            }
            match serde_yaml::to_string(&document.value) {
                Ok(body) => document.body = body,
                Err(error) => faults.push(Fault { place: document.place.clone(), what: error.to_string() }),
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

fn inject_document(
    value: &mut Value,
    pools: &Pools,
    sidecar: &Sidecar,
    injected: &mut Vec<Injected>,
) -> Result<(), String> {
    if let Some(items) = value.get_mut("items").and_then(Value::as_sequence_mut) {
        return items.iter_mut().try_for_each(|item| inject_document(item, pools, sidecar, injected));
    }
    if !template(value).is_some_and(asks) {
        return Ok(());
    }
    // Merge keys are resolved in what is written, as they are in what is read.
    value.apply_merge().map_err(|error| error.to_string())?;
    let name = value.get("metadata").and_then(|metadata| text(metadata, "name").or(text(metadata, "generateName")));
    let object = format!("{} {}", text(value, "kind").unwrap_or_default(), name.unwrap_or("without a name"));
    let namespace = value.get("metadata").and_then(|metadata| text(metadata, "namespace")).map(str::to_owned);
    let Some(template) = template_mut(value) else { return Ok(()) };

    let fault = |what: &dyn std::fmt::Display| format!("{object}: {what}");
    let pod: PodTemplateSpec = serde_yaml::from_value(template.clone()).map_err(|error| fault(&error))?;
    let (metadata, spec) = (pod.metadata.unwrap_or_default(), pod.spec.unwrap_or_default());
    let verdict = inject(&metadata, &spec, sidecar, |name| pools.facts(namespace.as_deref(), name));
    let injection = match verdict.map_err(|refusal| fault(&refusal))? {
        Verdict::NotAsked => return Ok(()),
        Verdict::AlreadyInjected => None,
        Verdict::Inject(injection) => Some(injection),
    };
    for AddOperation { path, value } in injection.iter().flat_map(|injection| &injection.edits) {
        let value = serde_yaml::to_value(value).map_err(|error| fault(&error))?;
        add(template, path, value).ok_or_else(|| fault(&format!("there is no {path} to add to")))?;
    }
    injected.push(Injected { object, injection });
    Ok(())
}

/// The pod, or the pod template, of an object: what has `metadata` and the pod's `spec`.
fn template(object: &Value) -> Option<&Value> {
    if text(object, "kind") == Some("Pod") {
        return Some(object);
    }
    let spec = object.get("spec")?;
    let template = spec.get("template").or_else(|| spec.get("jobTemplate")?.get("spec")?.get("template"))?;
    template.get("spec").and(Some(template))
}

fn template_mut(object: &mut Value) -> Option<&mut Value> {
    if text(object, "kind") == Some("Pod") {
        return Some(object);
    }
    let spec = object.get_mut("spec")?;
    if spec.get("template").is_some() {
        return spec.get_mut("template");
    }
    spec.get_mut("jobTemplate")?.get_mut("spec")?.get_mut("template")
}

fn asks(template: &Value) -> bool {
    template.get("metadata").and_then(|m| m.get("labels")).is_some_and(|labels| labels.get(POOL_LABEL).is_some())
}

/// Adds as RFC 6902 does: a list grows at `-`, a map takes or replaces the field. `None` if there is no such place.
fn add(root: &mut Value, path: &Pointer, value: Value) -> Option<()> {
    let (parent, last) = path.split_back()?;
    let parent = parent.tokens().try_fold(root, |at, token| match at {
        Value::Sequence(items) => items.get_mut(token.decoded().parse::<usize>().ok()?),
        at => at.get_mut(token.decoded().as_ref()),
    })?;
    match parent {
        Value::Sequence(items) if last.encoded() == "-" => items.push(value),
        Value::Mapping(fields) => {
            fields.insert(Value::String(last.decoded().into_owned()), value);
        }
        _ => return None,
    }
    Some(())
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
