use ring::settings::KeySource::{Cookie, Header, Jwt, Path, Query, Subprotocol};

use super::*;

fn spec(from: Vec<KeySource>) -> KeySpec {
    KeySpec { from, ..KeySpec::default() }
}

fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a good request")
}

fn key(from: KeySource, target: &str, headers: &[(&str, &str)]) -> Option<String> {
    key_of(&request(target, headers), &spec(vec![from]), no_token).expect("a key or none")
}

#[expect(clippy::unnecessary_wraps, reason = "what a reader of claims returns")]
fn no_token(_: &str) -> Result<Option<String>, TokenError> {
    Ok(None)
}

fn query(target: &str) -> Option<String> {
    key(Query("user".into()), target, &[])
}

fn path(template: &str, target: &str) -> Option<String> {
    key(Path(template.into()), target, &[])
}

fn cookie(lines: &[&str]) -> Option<String> {
    let headers: Vec<_> = lines.iter().map(|line| ("cookie", *line)).collect();
    key(Cookie("sid".into()), "/", &headers)
}

#[test]
fn a_query_parameter_is_decoded_as_forms_encode_it() {
    assert_eq!(query("/?user=7").as_deref(), Some("7"));
    assert_eq!(query("/?a=b&user=J%C3%BCrgen+M%26M%2b&user=x").as_deref(), Some("Jürgen M&M+"));
    assert_eq!(query("/?us%65r=7").as_deref(), Some("7"));
    assert_eq!(query("/?user=a=b").as_deref(), Some("a=b"));
    assert_eq!(query("/?user=100%").as_deref(), Some("100%"));
    for target in ["/", "/?user", "/?user=", "/?xuser=7", "/?User=7", "/user=7"] {
        assert_eq!(query(target), None, "{target}");
    }
}

#[test]
fn a_header_is_found_in_any_case() {
    let from = Header("X-User".into());
    assert_eq!(key(from.clone(), "/", &[("x-user", "7"), ("x-user", "8")]).as_deref(), Some("7"));
    assert_eq!(key(from, "/", &[("x-user", "")]), None);
}

#[test]
fn a_cookie_is_found_among_others_in_several_lines_and_in_quotes() {
    assert_eq!(cookie(&["a=b; sid=7; c=d"]).as_deref(), Some("7"));
    assert_eq!(cookie(&["a=b;sid=\"7 8\""]).as_deref(), Some("7 8"));
    assert_eq!(cookie(&["a=b", "sid=7=8"]).as_deref(), Some("7=8"));
    for lines in [&["xsid=7"][..], &["SID=7"], &["sid"], &["a=sid=7"], &["sid="]] {
        assert_eq!(cookie(lines), None, "{lines:?}");
    }
}

#[test]
fn a_path_yields_its_segment_decoded() {
    assert_eq!(path("/rooms/{key}", "/rooms/7?x=/rooms/8").as_deref(), Some("7"));
    assert_eq!(path("/rooms/{key}", "/rooms/a%2Fb%20c+d").as_deref(), Some("a/b c+d"));
    assert_eq!(path("/rooms/{key}", "/r%6Foms/7").as_deref(), Some("7"));
    assert_eq!(path("/a/*/{key}/b", "/a/x/7/b").as_deref(), Some("7"));
    assert_eq!(path("/{key}", "/7").as_deref(), Some("7"));
}

#[test]
fn a_path_must_have_the_templates_shape_but_for_one_slash_at_the_end() {
    assert_eq!(path("/rooms/{key}", "/rooms/7/").as_deref(), Some("7"));
    assert_eq!(path("/rooms/{key}/", "/rooms/7").as_deref(), Some("7"));
    for target in ["/rooms", "/rooms/", "/rooms/7/8", "/room/7", "/rooms/7//", "//rooms/7", "/"] {
        assert_eq!(path("/rooms/{key}", target), None, "{target}");
    }
}

#[test]
fn a_subprotocol_yields_what_follows_its_prefix_decoded() {
    let subprotocol = |lines: &[&str]| {
        let headers: Vec<_> = lines.iter().map(|line| ("sec-websocket-protocol", *line)).collect();
        key(Subprotocol("user.".into()), "/", &headers)
    };
    assert_eq!(subprotocol(&["chat,user.7"]).as_deref(), Some("7"));
    assert_eq!(subprotocol(&["chat", "v1 , user.a%2Fb"]).as_deref(), Some("a/b"));
    for lines in [&["user."][..], &["chat"], &["xuser.7"], &["USER.7"], &[]] {
        assert_eq!(subprotocol(lines), None, "{lines:?}");
    }
}

#[test]
fn a_claim_counts_in_its_turn_and_a_token_that_proves_nothing_is_not_passed_over() {
    let spec = spec(vec![Query("user".into()), Jwt("sub".into()), Header("x-user".into())]);
    let headers = [("x-user", "header")];
    let key = |target, claim: Result<Option<String>, TokenError>| {
        key_of(&request(target, &headers), &spec, |name| {
            assert_eq!(name, "sub");
            claim.clone()
        })
    };
    assert_eq!(key("/?user=query", Err(TokenError::Expired)), Ok(Some("query".into())));
    assert_eq!(key("/", Ok(Some("claim".into()))), Ok(Some("claim".into())));
    assert_eq!(key("/", Ok(None)), Ok(Some("header".into())));
    assert_eq!(key("/", Err(TokenError::Expired)), Err(KeyError::Token(TokenError::Expired)));
    assert_eq!(key("/", Ok(Some("a\nb".into()))), Err(KeyError::Control));
}

#[test]
fn the_first_source_with_a_value_wins() {
    let spec = spec(vec![Query("user".into()), Header("x-user".into()), Path("/{key}".into())]);
    let headers = [("x-user", "header")];
    let key = |target, headers| key_of(&request(target, headers), &spec, no_token).expect("a key or none");
    assert_eq!(key("/path?user=query", &headers).as_deref(), Some("query"));
    assert_eq!(key("/path?user=", &headers).as_deref(), Some("header"));
    assert_eq!(key("/path", &[]).as_deref(), Some("path"));
    assert_eq!(key("/", &[]), None);
}

#[test]
fn what_cannot_be_a_key_is_refused_rather_than_passed_over() {
    let spec = spec(vec![Query("user".into()), Header("x-user".into())]);
    let refused = |target: &str| key_of(&request(target, &[("x-user", "7")]), &spec, no_token).expect_err(target);
    assert_eq!(refused("/?user=%ff"), KeyError::NotUtf8);
    for control in ["%00", "%0a", "a%1fb", "%7f", "%c2%80"] {
        assert_eq!(refused(&format!("/?user={control}")), KeyError::Control, "{control}");
    }
    assert_eq!(refused(&format!("/?user={}", "x".repeat(KEY_MAX + 1))), KeyError::TooLong);
    let longest = format!("/?user={}", "%41".repeat(KEY_MAX));
    assert_eq!(key_of(&request(&longest, &[]), &spec, no_token), Ok(Some("A".repeat(KEY_MAX))));
}

#[test]
fn a_spec_that_could_never_work_is_refused_with_its_place() {
    let refused = |from: KeySource| check(&spec(vec![Query("ok".into()), from])).expect_err("a bad spec").to_string();
    assert_eq!(refused(Query(String::new())), "key.from[1]: the name of a query parameter is empty");
    assert_eq!(refused(Cookie(String::new())), "key.from[1]: the name of a cookie is empty");
    assert_eq!(refused(Header("x user".into())), "key.from[1]: \"x user\" cannot be the name of a header");
    assert!(refused(Jwt("sub".into())).starts_with("key.from[1]: a claim needs key.jwt"));
    assert!(refused(Path("rooms/{key}".into())).contains("does not begin with a slash"));
    assert!(refused(Path("/rooms/key".into())).contains("has 0 segments"));
    assert!(refused(Path("/rooms/x{key}".into())).contains("has 0 segments"));
    assert!(refused(Path("/{key}/{key}".into())).contains("has 2 segments"));
    let good = vec![Query("a b".into()), Header("X-User".into()), Cookie("sid".into()), Path("/a/*/{key}".into())];
    assert_eq!(check(&spec(good)), Ok(()));
}

#[test]
fn keys_are_verified_only_where_all_of_them_are_claims() {
    let jwt = serde_json::json!({"issuer": "https://idp.example.com/", "audiences": ["chat"], "algorithms": ["RS256"],
        "jwksUri": "https://idp.example.com/jwks.json"});
    let jwt = Some(serde_json::from_value(jwt).expect("how tokens are checked"));
    let checked = |from| check(&KeySpec { from, trust: Trust::Verified, jwt: jwt.clone(), ..KeySpec::default() });
    assert_eq!(checked(vec![Jwt("sub".into())]), Ok(()));
    assert_eq!(checked(vec![Jwt("sub".into()), Query("user".into())]), Err(SpecError::Unverified { index: 1 }));
}
