//! The address book: `GET /gateway` tells a client where to connect, so that its connection needs no hop.
//!
//! ```text
//!  client ── GET /gateway?user=ann ──► any sidecar ── cors, visitors, key ──► locate ──► {"url", "slot", "epoch"}
//!         ── wss://s1.chat.example.com/?user=ann ──► the sidecar of slot 1 ──► its app
//! ```
//!
//! The field `url` is that of Discord's Get Gateway, so that its clients need no new code. [`locate`] decides by the
//! admission of handshakes, so that the two cannot disagree.

mod cors;
mod locate;
mod visitors;

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use ring::SlotId;
use ring::settings::{Gateway, KeySource, Settings};
use serde::Serialize;

use crate::identity;
use crate::key::{KeyError, KeyInput};
use crate::plain::{Body, json, text};
use crate::sidecar::Sidecar;
use crate::view::View;

pub use visitors::Visitors;

const METHODS: &str = "GET, HEAD, OPTIONS";

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Located {
    /// Where to connect.
    url: String,
    /// The slot at that address.
    slot: SlotId,
    /// The placement's epoch.
    epoch: u64,
}

/// Whether a request is for the address book.
///
/// Where keys stand in paths the rest of the path is that of the connection to come: `/gateway/rooms/7`.
pub fn asks(settings: &Settings, path: &str) -> bool {
    settings.gateway.as_ref().is_some_and(|gateway| future_path(settings, gateway, path).is_some())
}

/// The path that the client will connect with.
fn future_path<'a>(settings: &Settings, gateway: &Gateway, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(gateway.path.as_str())?;
    let in_path = || settings.key.from.iter().any(|source| matches!(source, KeySource::Path(_)));
    match rest {
        "" => Some("/"),
        _ => (rest.starts_with('/') && in_path()).then_some(rest),
    }
}

/// A client's question, with the path of its connection to come.
struct Question<'a, B> {
    request: &'a Request<B>,
    path: &'a str,
}

impl<B> KeyInput for Question<'_, B> {
    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        self.request.uri().query()
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.request.values(name)
    }
}

/// Answers a client.
pub(crate) async fn answer<B>(
    sidecar: &Arc<Sidecar>,
    view: &View,
    remote: IpAddr,
    request: &Request<B>,
) -> Response<Body> {
    let settings = view.settings();
    let found = settings.gateway.as_ref().and_then(|gateway| {
        let path = future_path(settings, gateway, request.uri().path())?;
        Some((gateway, Question { request, path }))
    });
    let Some((gateway, question)) = found else { return text(StatusCode::NOT_FOUND, "there is no address book") };
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => look_up(sidecar, settings, gateway, remote, &question).await,
        Method::OPTIONS => methods(StatusCode::NO_CONTENT, ""),
        _ => methods(StatusCode::METHOD_NOT_ALLOWED, "the address book is read with GET or HEAD\n"),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    cors::permit(headers, gateway, &settings.key, request);
    response
}

async fn look_up<B>(
    sidecar: &Arc<Sidecar>,
    settings: &Settings,
    gateway: &Gateway,
    remote: IpAddr,
    question: &Question<'_, B>,
) -> Response<Body> {
    let forwarded = question.values("x-forwarded-for");
    let visitor = visitors::address(remote, forwarded, gateway.trusted_hops);
    let admitted = {
        let mut visitors = sidecar.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        visitors.admit(visitor, gateway.per_client, Instant::now())
    };
    if let Err(wait) = admitted {
        sidecar.metrics.gateway("too_many");
        let mut response =
            text(StatusCode::TOO_MANY_REQUESTS, "too many questions from this address; try again in a moment");
        retry_after(&mut response, wait.as_secs() + 1);
        return response;
    }
    let key = match identity::read(sidecar, &settings.key, question).await {
        Ok(key) => key,
        // As its handshake would be answered.
        Err(KeyError::Token(error)) => {
            sidecar.metrics.token_refused(error.label());
            let mut response = text(error.status(), &error.to_string());
            let (name, value) = error.header();
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(name, value);
            }
            return response;
        }
        Err(error) => {
            sidecar.metrics.bad_request(error.label());
            return text(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    match locate::locate(sidecar, key.as_deref()).await {
        Ok((slot, epoch)) => {
            sidecar.metrics.gateway("located");
            json(StatusCode::OK, &Located { url: gateway.url_of(slot), slot, epoch })
        }
        Err(refusal) => {
            sidecar.metrics.gateway(refusal.label());
            let mut response = text(refusal.status(), &refusal.to_string());
            if refusal.status() != StatusCode::BAD_REQUEST {
                retry_after(&mut response, 1);
            }
            response
        }
    }
}

fn retry_after(response: &mut Response<Body>, seconds: u64) {
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
}

fn methods(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::own(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
    response
}
