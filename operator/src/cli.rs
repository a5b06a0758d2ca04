//! The command line. Every flag has an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::inject::command::InjectArgs;
use crate::standalone::Options;

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

impl From<StandaloneArgs> for Options {
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
