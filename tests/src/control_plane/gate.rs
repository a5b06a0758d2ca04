//! A way to the API server that can be shut: whoever comes through it is cut off, and does not notice.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The gate. It passes bytes on while it is open; shut, it keeps connections open and passes nothing.
pub struct Gate {
    address: SocketAddr,
    open: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Gate {
    /// An open gate before an API server, and a kubeconfig that leads through it, like the one that is given.
    pub async fn before(kubeconfig: &Path) -> (Self, PathBuf) {
        let text = std::fs::read(kubeconfig).expect("a kubeconfig");
        let mut through: Value = serde_json::from_slice(&text).expect("a kubeconfig in JSON");
        let server = through["clusters"][0]["cluster"]["server"].as_str().expect("a server").to_owned();
        let server: SocketAddr = server.trim_start_matches("https://").parse().expect("an address");
        let listener = TcpListener::bind((server.ip(), 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        through["clusters"][0]["cluster"]["server"] = format!("https://{address}").into();
        let file = kubeconfig.with_extension(format!("through-{}", address.port()));
        std::fs::write(&file, through.to_string()).expect("a folder that can be written");
        let open = Arc::new(watch::Sender::new(true));
        let task = tokio::spawn(serve(listener, server, Arc::clone(&open)));
        (Self { address, open, task }, file)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shuts it.
    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Opens it again; what was kept back goes on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, open: Arc<watch::Sender<bool>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let open = open.subscribe();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else { return };
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::select! {
                () = pass(from_client, to_server, open.clone()) => {}
                () = pass(from_server, to_client, open) => {}
            }
        });
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
