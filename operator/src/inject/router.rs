//! A router's pod: a sidecar alone, with what injection would give to one beside an app.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ExecAction, Lifecycle, LifecycleHandler, PodSecurityContext, PodSpec, SeccompProfile,
};
use ring::duration::GoDuration;

use super::resources::Resources;
use super::sidecar::{self, Behind};
use super::{BIN, Sidecar, grace_seconds};

/// How long an ending router serves on before it drains: until every node has heard that it ends. Those it sends away
/// sooner could come back to it.
const DELAY: GoDuration = GoDuration::from_secs(3);

/// The pod of a pool's routers. `drain` is how long one may take to send its connections to the others.
pub fn pod(sidecar: &Sidecar, pool: &str, drain: Duration) -> PodSpec {
    let resources = Resources { cpu: sidecar.cpu.clone(), memory: sidecar.memory.clone(), limited: false };
    let mut container = sidecar::container(sidecar, &PodSpec::default(), Behind::Nothing, Some(resources));
    container.restart_policy = None;
    // By the installed copy: the token that proves it is beside that.
    let hook = ["prestop".to_owned(), format!("--timeout={}", GoDuration(drain)), format!("--delay={DELAY}")];
    let command = std::iter::once(format!("{BIN}/wspool-sidecar")).chain(hook).collect();
    let hook = LifecycleHandler { exec: Some(ExecAction { command: Some(command) }), ..LifecycleHandler::default() };
    container.lifecycle = Some(Lifecycle { pre_stop: Some(hook), ..Lifecycle::default() });
    PodSpec {
        containers: vec![container],
        volumes: Some(sidecar::volumes(pool, None)),
        termination_grace_period_seconds: Some(grace_seconds(&PodSpec::default(), drain)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}
