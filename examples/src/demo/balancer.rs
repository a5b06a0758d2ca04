//! A plain TCP balancer: what the first act is compared with.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Error;

/// Gives each new connection to the next server in turn, and leaves the old ones where they are.
#[derive(Debug)]
pub struct Balancer {
    /// Where clients enter.
    pub entry: SocketAddr,
    state: Arc<Mutex<State>>,
    _accepting: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    servers: Vec<SocketAddr>,
    turn: usize,
    connections: JoinSet<()>,
}

impl Balancer {
    /// Listens on an address, with one server.
    pub async fn start(entry: SocketAddr, first: SocketAddr) -> Result<Self, Error> {
        let listener = TcpListener::bind(entry).await.map_err(Error::io(format!("listening on {entry}")))?;
        let state = Arc::new(Mutex::new(State { servers: vec![first], turn: 0, connections: JoinSet::new() }));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { entry, state, _accepting: accepting })
    }

    /// Takes in another server.
    pub fn add(&self, server: SocketAddr) {
        lock(&self.state).servers.push(server);
    }

    /// Drops every connection at once, as a proxy does that is started anew with another list of servers.
    pub fn drop_all(&self) {
        lock(&self.state).connections.abort_all();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await; // Out of descriptors: they come back.
            continue;
        };
        let mut state = lock(&state);
        let server = state.servers[state.turn % state.servers.len()];
        state.turn += 1;
        state.connections.spawn(async move {
            if let Ok(mut server) = TcpStream::connect(server).await
                && client.set_nodelay(true).is_ok()
                && server.set_nodelay(true).is_ok()
            {
                // However it ends, the client sees it.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
