//! What a container of the app gets: the preStop hook that holds it until its pod is drained and then does what the hook
//! before it did, and where the sidecar's local API is.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use ring::duration::GoDuration;
use serde_json::json;

use super::edits::Edits;
use super::{BIN, Refusal, sidecar};

/// The address that an `httpGet` hook without a host means. The kubelet knows it; a process must be told.
const POD_IP: &str = "WSPOOL_POD_IP";

/// Adds the hook to the container at `path`, and what it needs there.
pub(super) fn hold(edits: &mut Edits, path: &str, container: &Container, drain: Duration) -> Result<(), Refusal> {
    let before = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let mut command =
        vec![format!("{BIN}/wspool-sidecar"), "prestop".to_owned(), format!("--timeout={}", GoDuration(drain))];
    command.extend(before.map(|hook| repeat(container, hook)).transpose()?.unwrap_or_default());
    let hook = LifecycleHandler { exec: Some(ExecAction { command: Some(command) }), ..LifecycleHandler::default() };
    if container.lifecycle.is_some() {
        edits.set(&format!("{path}/lifecycle/preStop"), json!(hook));
    } else {
        let lifecycle = Lifecycle { pre_stop: Some(hook), ..Lifecycle::default() };
        edits.set(&format!("{path}/lifecycle"), json!(lifecycle));
    }
    let bin = VolumeMount {
        name: sidecar::BIN_VOLUME.to_owned(),
        mount_path: BIN.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    edits.append(&format!("{path}/volumeMounts"), container.volume_mounts.as_deref(), &[bin]);
    let mut variables = sidecar::api_variables().to_vec();
    variables.extend(before.is_some_and(needs_pod_ip).then(|| sidecar::downward(POD_IP, "status.podIP")));
    variables.retain(|new: &EnvVar| container.env.iter().flatten().all(|present| present.name != new.name));
    edits.append(&format!("{path}/env"), container.env.as_deref(), &variables);
    Ok(())
}

/// The arguments that make `prestop` do what a hook did. Their order is the kubelet's, which takes the first kind it finds.
fn repeat(container: &Container, hook: &LifecycleHandler) -> Result<Vec<String>, Refusal> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.iter().flatten().cloned();
        return Ok(std::iter::once("--".to_owned()).chain(command).collect());
    }
    if let Some(get) = &hook.http_get {
        return repeat_get(container, get);
    }
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        return Ok(vec![format!("--sleep={seconds}s")]);
    }
    Ok(Vec::new())
}

fn repeat_get(container: &Container, get: &HTTPGetAction) -> Result<Vec<String>, Refusal> {
    if get.scheme.as_deref() == Some("HTTPS") {
        return Err(Refusal::HttpsHook { container: container.name.clone() });
    }
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let port = hook_port(container, &get.port)?;
    // With an equals sign, since a value may begin with a hyphen.
    let mut arguments = vec![format!("--http-get={path}"), format!("--port={port}")];
    arguments.extend(named_host(get).map(|host| format!("--host={host}")));
    let headers = get.http_headers.iter().flatten();
    arguments.extend(headers.map(|header| format!("--header={}: {}", header.name, header.value)));
    Ok(arguments)
}

/// A name means a port of the hook's own container, as the kubelet reads it.
fn hook_port(container: &Container, port: &IntOrString) -> Result<String, Refusal> {
    let name = match port {
        IntOrString::Int(number) => return Ok(number.to_string()),
        IntOrString::String(name) => name,
    };
    let declared = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
    let number = declared.map(|port| port.container_port.to_string());
    let number = number.or_else(|| name.parse::<u16>().is_ok().then(|| name.clone()));
    number.ok_or_else(|| Refusal::HookPort { container: container.name.clone(), port: name.clone() })
}

fn named_host(get: &HTTPGetAction) -> Option<&str> {
    get.host.as_deref().filter(|host| !host.is_empty())
}

fn needs_pod_ip(hook: &LifecycleHandler) -> bool {
    hook.exec.is_none() && hook.http_get.as_ref().is_some_and(|get| named_host(get).is_none())
}
