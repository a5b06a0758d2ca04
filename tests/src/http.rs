//! Small requests with JSON, for control ports and metrics.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long an answer may take; [`until`](crate::until) asks again.
const LIMIT: Duration = Duration::from_secs(10);

/// A client.
#[derive(Clone, Debug)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Default for Http {
    fn default() -> Self {
        // A kept connection may be that of a process which a test has killed.
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http())
    }
}

impl Http {
    /// Sends a request; an error is one of the connection.
    pub async fn send(
        &self,
        method: Method,
        at: SocketAddr,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        self.send_with(&[], method, at, path, body).await
    }

    /// Sends a request with headers.
    pub async fn send_with(
        &self,
        headers: &[(&str, &str)],
        method: Method,
        at: SocketAddr,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("http://{at}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).map_err(|error| error.to_string())?;
        let asking = async {
            let response = self.0.request(request).await.map_err(|error| format!("{path}: {error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| format!("{path}: {error:?}"))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(LIMIT, asking).await.unwrap_or_else(|_| Err(format!("{path}: no answer")))
    }

    /// Gets a JSON document.
    pub async fn get<T: DeserializeOwned>(&self, at: SocketAddr, path: &str) -> Result<T, String> {
        self.send(Method::GET, at, path, "").await?.json()
    }
}

impl Answer {
    /// Reads the body of a success.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, String> {
        let text = String::from_utf8_lossy(&self.body);
        if !self.status.is_success() {
            return Err(format!("{}: {text}", self.status));
        }
        serde_json::from_str(&text).map_err(|error| format!("{error} in {text}"))
    }

    /// A header's value, empty without one.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Panics unless a request was refused like this; what is said to be right.
pub fn refused(answer: &Answer, status: u16, title: &str) -> String {
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status.as_u16(), status, "{body}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem: Value = serde_json::from_str(&body).expect("a problem");
    assert_eq!((&problem["status"], &problem["title"]), (&Value::from(status), &Value::from(title)), "{body}");
    problem["detail"].as_str().expect("a detail").to_owned()
}
