//! Where the local API listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use tokio::sync::watch;

use crate::process::serve_http;

/// An address on loopback, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    /// On loopback.
    Tcp(SocketAddr),
    /// A socket in the file system: who may write to it may ask.
    Unix(PathBuf),
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound address.
#[derive(Debug)]
pub enum ApiListener {
    /// On loopback.
    Tcp(std::net::TcpListener),
    /// In the file system.
    Unix(std::os::unix::net::UnixListener),
}

impl ApiListener {
    /// Binds. A socket that a process before has left behind is replaced.
    pub fn bind(address: &ApiAddress) -> std::io::Result<Self> {
        match address {
            ApiAddress::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            ApiAddress::Unix(path) => {
                use std::os::unix::fs::FileTypeExt as _;
                if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
                    std::fs::remove_file(path)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    /// Serves until `stop` turns true.
    pub async fn serve(self, routes: Router, stop: watch::Receiver<bool>) -> std::io::Result<()> {
        match self {
            Self::Tcp(listener) => serve_http(tokio::net::TcpListener::from_std(listener)?, routes, stop).await,
            Self::Unix(listener) => serve_http(tokio::net::UnixListener::from_std(listener)?, routes, stop).await,
        }
        Ok(())
    }
}
