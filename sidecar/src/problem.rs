//! Errors as their callers get them: problem details (RFC 9457).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ring::wire::Problem;

/// A request that was refused: its status, its kind, and what to do about it.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub &'static str, pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, title, detail) = self;
        let problem = Problem { status: status.as_u16(), title: title.to_owned(), detail };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, Problem::CONTENT_TYPE)], body).into_response()
    }
}
