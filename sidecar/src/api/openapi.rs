//! The description of the local API. `wspool-sidecar openapi` prints it; a copy is `sidecar/openapi.json`.

use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

/// What was wrong, and what would be right (RFC 9457).
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it describes `ring::wire::Problem`, which knows nothing of OpenAPI")]
pub(super) struct Problem {
    /// The HTTP status.
    status: u16,
    /// The kind of error, one word, stable.
    title: String,
    /// What was wrong, and what would be right.
    detail: String,
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "wspool's local API",
        description = "Messages to the clients of any server in the pool, sessions that outlive servers, and keys that stay at theirs for a while. It is \
                       served by the sidecar in the app's own pod, at the address in WSPOOL_API_URL.",
        contact(),
    ),
    paths(
        super::send,
        super::send_to_all,
        super::find,
        super::pins::get,
        super::pins::put,
        super::pins::delete,
        super::sessions::get,
        super::sessions::put,
        super::sessions::delete
    )
)]
struct Description;

/// The whole description.
pub fn document() -> OpenApi {
    let mut document = Description::openapi();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("token", bearer);
    document.security = Some(vec![SecurityRequirement::new("token", [] as [&str; 0])]);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_route() {
        let document = document();
        let paths: Vec<&str> = document.paths.paths.keys().map(String::as_str).collect();
        let of_a_key = ["", "/messages", "/pin", "/session"].map(|path| format!("/v1/keys/{{key}}{path}"));
        let expected: Vec<_> = of_a_key.iter().map(String::as_str).chain(["/v1/messages"]).collect();
        assert_eq!(paths, expected);
    }
}
