//! The process: ports bound, threads started, signals heard, everything waited for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{self, ApiAddress, ApiListener};
use crate::cli::{Config, ConfigError};
use crate::metrics::Metrics;
use crate::sidecar::{Installed, Sidecar};
use crate::{control, evictor, idle, jwks, messages, peers, placements, prestop, redis, revival, server, sessions};

/// The backlog of the client port: a storm of reconnecting clients waits here rather than being refused.
const BACKLOG: i32 = 4096;

/// Why the process ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port cannot be bound.
    #[error("cannot listen on {address} (--{flag}): {error}")]
    Bind {
        /// The flag that names it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The local API cannot be bound.
    #[error("cannot listen on {address} (--api): {error}")]
    BindApi {
        /// The address.
        address: ApiAddress,
        /// Why.
        error: std::io::Error,
    },
    /// The system refuses something without which nothing works.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// A task ended that must not.
    #[error("a part of the sidecar ended unexpectedly: {0}")]
    Ended(String),
}

/// Runs a sidecar until it is told to stop. `release_memory` gives back what the allocator keeps for its thread.
pub fn run(config: Config, release_memory: fn()) -> Result<(), Error> {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = bind("control", config.control)?;
        let metrics = bind("metrics", config.metrics)?;
        let listener = listen(config.listen)?;
        let api = config.api.as_ref().map(bind_api).transpose()?;
        let installed = install(&config)?;
        let sidecar = Sidecar::new(config, installed, Metrics::default());
        placements::load(&sidecar);
        let (stop, stopped) = watch::channel(false);
        let mut workers: Vec<_> = (0..sidecar.config.workers)
            .map(|_| worker(Arc::clone(&sidecar), listener.try_clone()?, release_memory, stopped.clone()))
            .collect::<Result<_, Error>>()?;
        workers.push(app_worker(Arc::clone(&sidecar), api, stopped.clone())?);
        drop(listener);
        tracing::info!(
            listen = %sidecar.config.listen,
            upstream = ?sidecar.config.upstream,
            uid = %sidecar.config.uid,
            "the sidecar is ready"
        );

        let mut tasks = JoinSet::new();
        for (listener, routes) in [
            (control, control::routes(Arc::clone(&sidecar))),
            (metrics, control::observation_routes(Arc::clone(&sidecar))),
        ] {
            if let Some(listener) = listener {
                tasks.spawn(serve_http(TcpListener::from_std(listener)?, routes, stopped.clone()));
            }
        }
        tasks.spawn(evictor::run(Arc::clone(&sidecar), stopped.clone()));
        tasks.spawn(jwks::run(Arc::clone(&sidecar), stopped.clone()));
        tasks.spawn(messages::run(Arc::clone(&sidecar), stopped.clone()));
        tasks.spawn(sessions::run(Arc::clone(&sidecar), stopped.clone()));
        tasks.spawn(idle::run(Arc::clone(&sidecar), stopped.clone()));
        if let Some(app) = sidecar.config.upstream {
            tasks.spawn(revival::run(Arc::clone(&sidecar), app.port(), stopped.clone()));
        }
        if let Some(file) = sidecar.config.placement.clone() {
            tasks.spawn(placements::follow(Arc::clone(&sidecar), file, stopped.clone()));
        }

        let outcome = tokio::select! {
            told = until_told(&sidecar) => told.map_err(Error::from),
            Some(ended) = tasks.join_next() => Err(Error::Ended(format!("{ended:?}"))),
            () = any_finished(&workers) => Err(Error::Ended("a thread".into())),
        };
        // Nobody can be waiting if all receivers are gone already.
        let _ = stop.send(true);
        while tasks.join_next().await.is_some() {}
        for worker in workers {
            let joined = tokio::task::spawn_blocking(|| worker.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                return outcome.and(Err(Error::Ended("a thread panicked".into())));
            }
        }
        outcome
    })
}

/// SIGTERM drains first, SIGINT does not; a second signal ends a drain.
async fn until_told(sidecar: &Arc<Sidecar>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => return Ok(()),
    }
    control::begin_drain(sidecar);
    tokio::select! {
        () = evictor::drained(sidecar) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn worker(
    sidecar: Arc<Sidecar>,
    listener: std::net::TcpListener,
    release_memory: fn(),
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, Error> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("connections".into()).spawn(move || {
        runtime.block_on(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => server::run(sidecar, listener, release_memory, stop).await,
                Err(error) => tracing::error!(%error, "a listener cannot be used"),
            }
        });
    })?;
    Ok(thread)
}

/// The local API and Redis have a thread of their own: apps that send much delay neither connections nor the operator.
fn app_worker(
    sidecar: Arc<Sidecar>,
    listener: Option<ApiListener>,
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, Error> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("app".into()).spawn(move || {
        let redis = redis::run(Arc::clone(&sidecar), stop.clone());
        let api = async {
            let Some(listener) = listener else { return };
            if let Err(error) = listener.serve(api::routes(sidecar), stop).await {
                tracing::error!(%error, "the local API cannot be served");
            }
        };
        runtime.block_on(async { tokio::join!(redis, api) });
    })?;
    Ok(thread)
}

/// Puts into the folder that the app's container shares what its processes need.
fn install(config: &Config) -> Result<Installed, Error> {
    let Some(folder) = config.install.as_deref() else { return Ok(Installed::default()) };
    let hook_token = Some(prestop::install(folder)?);
    let made = config.api.is_some() && config.api_token_file.is_none();
    let api_token_file = made.then(|| api::install_token(folder)).transpose()?;
    Ok(Installed { hook_token, api_token_file })
}

async fn any_finished(workers: &[JoinHandle<()>]) {
    while !workers.iter().any(JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Serves until `stop` turns true.
pub async fn serve_http<L>(listener: L, routes: axum::Router, mut stop: watch::Receiver<bool>)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::select! {
        served = axum::serve(listener, routes).into_future() => if let Err(error) = served {
            tracing::error!(%error, "a port's server failed");
        },
        () = stopped => {}
    }
}

fn bind(flag: &'static str, address: Option<SocketAddr>) -> Result<Option<std::net::TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map(Some).map_err(|error| Error::Bind { flag, address, error })
}

fn bind_api(address: &ApiAddress) -> Result<ApiListener, Error> {
    ApiListener::bind(address).map_err(|error| Error::BindApi { address: address.clone(), error })
}

/// The client port; all threads for connections accept from it.
fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let bound = || {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        peers::tune(&SockRef::from(&socket))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bound().map_err(|error| Error::Bind { flag: "listen", address, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_the_options_of_its_listener() {
        let listener: std::net::TcpListener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let (accepted, _) = listener.accept().expect("the client");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("an option") && socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), Duration::from_secs(30));
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(60)));
        drop(client);
    }
}
