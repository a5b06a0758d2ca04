//! What the operator sends to the sidecars' control ports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;

/// Requests to one path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// How many there were.
    pub requests: u64,
    /// Their bodies, in bytes.
    pub bytes: u64,
}

/// What has been sent since it was looked at last, by path.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Mutex<BTreeMap<String, Sent>>>);

impl Traffic {
    /// What was sent; from now on it counts anew.
    pub fn take(&self) -> BTreeMap<String, Sent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a request.
    pub async fn count(State(traffic): State<Self>, request: Request, next: Next) -> Response {
        let path = request.uri().path().to_owned();
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let response = next.run(request).await;
        let mut sent = traffic.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sent.entry(path).or_default();
        sent.requests += 1;
        sent.bytes += length.unwrap_or(0_u64);
        response
    }
}
