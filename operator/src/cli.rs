//! The command line. Every flag has an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::inject::Sidecar;
use crate::inject::command::InjectArgs;
use crate::{cluster, standalone};

/// Plans which server owns which connections, and moves the ones that must move, paced.
#[derive(Debug, Parser)]
#[command(name = "wspool-operator", version)]
pub struct Cli {
    /// What is logged: a level, or a filter like operator=debug.
    #[arg(long, global = true, env = "WSPOOL_LOG", default_value = "info")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pools of a Kubernetes cluster: of the one it is in, or of the one that a kubeconfig leads to.
    Run(Box<RunArgs>),
    /// Run a pool without Kubernetes, from a members file that is watched.
    Standalone(StandaloneArgs),
    /// Say who owns the keys on the standard input: a line "key<TAB>member" for each.
    Owner(Files),
    /// Say how many of the keys on the standard input would move, from where to where.
    Plan(PlanArgs),
    /// Put the sidecar into manifests, as the webhook does it to pods.
    Inject(InjectArgs),
    /// Print the CRD as YAML.
    Crd,
}

/// The files of a pool.
#[derive(Clone, Debug, Args)]
pub struct Files {
    /// The pool: a `WebSocketPool` as YAML.
    #[arg(long, env = "WSPOOL_POOL", value_name = "FILE")]
    pub pool: PathBuf,
    /// The members: a YAML list of {name, address, control}, with weight and role if need be.
    #[arg(long, env = "WSPOOL_MEMBERS", value_name = "FILE")]
    pub members: PathBuf,
}

/// `standalone`.
#[derive(Clone, Debug, Args)]
pub struct StandaloneArgs {
    /// The files.
    #[command(flatten)]
    pub files: Files,
    /// Where to answer GET /v1/pools, /metrics and /healthz.
    #[arg(long, env = "WSPOOL_ADMIN", value_name = "HOST:PORT")]
    pub admin: Option<SocketAddr>,
}

/// `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// The files as they are now.
    #[command(flatten)]
    pub files: Files,
    /// The members as they would be.
    #[arg(long, env = "WSPOOL_TO", value_name = "FILE")]
    pub to: PathBuf,
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The operator's own namespace.
    #[arg(long, env = "WSPOOL_NAMESPACE", value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// The UID of the operator's pod, which tells replicas apart. Without it one is made.
    #[arg(long, env = "WSPOOL_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,
    /// The namespaces of pools, separated by commas. Without it pools of all namespaces are run.
    #[arg(long, env = "WSPOOL_WATCH_NAMESPACES", value_name = "NAME", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// The Lease by which one replica leads.
    #[arg(long, env = "WSPOOL_LEASE", value_name = "NAME", default_value = "wspool")]
    pub lease: String,
    /// The Secret that keeps the key by which sidecars know their operator.
    #[arg(long, env = "WSPOOL_KEYS_SECRET", value_name = "NAME", default_value = "wspool-keys")]
    pub keys_secret: String,
    /// Where to answer the API server's webhook. Without it no pod is injected on its way in.
    #[arg(long, env = "WSPOOL_WEBHOOK", value_name = "HOST:PORT")]
    pub webhook: Option<SocketAddr>,
    /// The MutatingWebhookConfiguration that leads there.
    #[arg(long, env = "WSPOOL_WEBHOOK_CONFIG", value_name = "NAME", default_value = "wspool")]
    pub webhook_config: String,
    /// The Secret that keeps the webhook's certificate.
    #[arg(long, env = "WSPOOL_WEBHOOK_SECRET", value_name = "NAME", default_value = "wspool-webhook")]
    pub webhook_secret: String,
    /// The Service by which the API server reaches the webhook.
    #[arg(long, env = "WSPOOL_WEBHOOK_SERVICE", value_name = "NAME", default_value = "wspool")]
    pub webhook_service: String,
    /// Where to answer custom.metrics.k8s.io, with the webhook's certificate and by its Service.
    #[arg(long, env = "WSPOOL_METRICS_API", value_name = "HOST:PORT", requires = "webhook")]
    pub metrics_api: Option<SocketAddr>,
    /// Where to answer GET /metrics, /healthz, /readyz and /v1/pools/{namespace}/{name}/connections.
    #[arg(long, env = "WSPOOL_METRICS", value_name = "HOST:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Where to answer GET /v1/pools too.
    #[arg(long, env = "WSPOOL_ADMIN", value_name = "HOST:PORT")]
    pub admin: Option<SocketAddr>,
    /// What injected pods get, and routers run.
    #[command(flatten)]
    pub sidecar: Sidecar,
}

impl From<RunArgs> for cluster::Options {
    fn from(args: RunArgs) -> Self {
        let webhook = args.webhook.map(|address| cluster::WebhookOptions {
            address,
            configuration: args.webhook_config,
            secret: args.webhook_secret,
            service: args.webhook_service,
            metrics_api: args.metrics_api,
        });
        Self {
            namespace: args.namespace,
            pod_uid: args.pod_uid.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>())),
            watch_namespaces: args.watch_namespaces.into_iter().filter(|name| !name.is_empty()).collect(),
            lease: args.lease,
            keys_secret: args.keys_secret,
            webhook,
            sidecar: args.sidecar,
            metrics: args.metrics,
            admin: args.admin,
        }
    }
}

impl From<StandaloneArgs> for standalone::Options {
    fn from(args: StandaloneArgs) -> Self {
        Self { pool: args.files.pool, members: args.files.members, admin: args.admin }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_flag_has_an_environment_variable() {
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands() {
            for flag in sub.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
                let variable = flag.get_env().map(|name| name.to_string_lossy().into_owned());
                let expected = format!("WSPOOL_{}", flag.get_id().as_str().to_uppercase());
                assert_eq!(variable, Some(expected), "{} --{}", sub.get_name(), flag.get_id());
            }
        }
    }
}
