//! Which pages may read the answer: the headers of the Fetch standard's CORS protocol.

use http::Request;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HeaderMap, HeaderValue, ORIGIN,
    VARY,
};
use ring::settings::{Gateway, KeySource, KeySpec, TokenSource};

const ANY: &str = "*";

/// Lets the request's origin read the answer, if it is listed. One that is listed by its name may send cookies: the key
/// may stand in one.
pub(super) fn permit<B>(headers: &mut HeaderMap, gateway: &Gateway, key: &KeySpec, request: &Request<B>) {
    if gateway.origins.is_empty() {
        return;
    }
    // Also where the origin is not listed: a cache must not hand that answer to one that is.
    headers.insert(VARY, HeaderValue::from_static("origin"));
    let Some(origin) = request.headers().get(ORIGIN) else { return };
    if gateway.origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    } else if gateway.origins.iter().any(|listed| listed == ANY) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(ANY));
    } else {
        return;
    }
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    if request.method() == http::Method::OPTIONS {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD"));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        let named = key.from.iter().filter_map(|source| match source {
            KeySource::Header(name) => Some(name.as_str()),
            _ => None,
        });
        let tokens = key.jwt.iter().flat_map(|jwt| &jwt.token).filter_map(|source| match source {
            TokenSource::Header(name) if !name.eq_ignore_ascii_case("authorization") => Some(name.as_str()),
            _ => None,
        });
        let allowed: Vec<&str> = named.chain(tokens).chain(["authorization"]).collect();
        if let Ok(allowed) = HeaderValue::try_from(allowed.join(", ")) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(listed: &[&str], method: &str, origin: &str) -> HeaderMap {
        let gateway = Gateway {
            path: "/gateway".into(),
            url: "ws://s{slot}/".into(),
            origins: listed.iter().map(|&origin| origin.to_owned()).collect(),
            per_client: 0,
            trusted_hops: 0,
        };
        let jwt = serde_json::json!({"issuer": "a", "token": [{"header": "Authorization"}, {"header": "x-token"}]});
        let jwt = Some(serde_json::from_value(jwt).unwrap());
        let key = KeySpec { from: vec![KeySource::Header("x-user".into())], jwt, ..KeySpec::default() };
        let request = Request::builder().method(method).header(ORIGIN, origin).body(()).unwrap();
        let mut headers = HeaderMap::new();
        permit(&mut headers, &gateway, &key, &request);
        headers
    }

    #[test]
    fn only_a_listed_origin_may_read_the_answer_and_only_one_listed_by_name_with_cookies() {
        let page = "https://chat.example.com";
        let named = permitted(&[page], "GET", page);
        assert_eq!(
            (&named[ACCESS_CONTROL_ALLOW_ORIGIN], &named[ACCESS_CONTROL_ALLOW_CREDENTIALS]),
            (&HeaderValue::from_static(page), &HeaderValue::from_static("true"))
        );
        let any = permitted(&[ANY], "GET", page);
        assert_eq!(any[ACCESS_CONTROL_ALLOW_ORIGIN], ANY);
        assert!(!any.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
        for foreign in ["https://chat.example.com.evil", "http://chat.example.com", "null"] {
            let headers = permitted(&[page], "GET", foreign);
            assert_eq!((headers.len(), &headers[VARY]), (1, &HeaderValue::from_static("origin")), "{foreign}");
        }
        assert!(permitted(&[], "GET", page).is_empty());
    }

    #[test]
    fn a_preflight_allows_the_headers_that_keys_and_tokens_stand_in() {
        let headers = permitted(&[ANY], "OPTIONS", "https://chat.example.com");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "x-user, x-token, authorization");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "GET, HEAD");
    }
}
