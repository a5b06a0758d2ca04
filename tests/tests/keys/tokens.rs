//! JSON web tokens: which are believed, which are refused, and with whose keys they are checked.

use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use harness::http::{Answer, Http};
use harness::issuer::{AUDIENCE, ISSUER, Publisher, SigningKey, claims, key_set, now, unsigned};
use harness::tls::{Certified, certified};
use harness::wait::equal;
use harness::{Wire, ports, until};
use http::{Method, StatusCode};
use jsonwebtoken::{Algorithm, Header};
use ring::duration::GoDuration;
use ring::settings::{Jwt, KeySource, KeySpec, Missing, Mounted, SigningAlgorithm, TokenSource};
use serde_json::{Value, json};

use crate::{Pool, handshake};

/// Keys are in the claim `sub` of tokens, whose keys are published at an address.
pub(crate) fn by_token(uri: &str) -> KeySpec {
    KeySpec { from: vec![KeySource::Jwt("sub".into())], jwt: Some(jwt(uri)), ..KeySpec::default() }
}

fn jwt(uri: &str) -> Jwt {
    let jwt = json!({"issuer": ISSUER, "audiences": [AUDIENCE], "jwksUri": uri});
    serde_json::from_value(jwt).expect("settings with what is left out")
}

/// The same with a file of keys.
fn by_file(keys: &str, algorithms: &[SigningAlgorithm]) -> (KeySpec, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, keys).expect("a file in a temporary folder");
    let jwt = Jwt { jwks_uri: None, jwks_from: Some(Mounted::File(file)), algorithms: algorithms.to_vec(), ..jwt("") };
    (KeySpec { jwt: Some(jwt), ..by_token("") }, folder)
}

fn with_token(token: &str) -> String {
    format!("/?access_token={token}")
}

impl Pool {
    /// One that tells clients where to connect.
    async fn with_gateway(key: KeySpec) -> Self {
        let mut pool = Self::new(key).await;
        let gateway = json!({"url": "wss://s{slot}.example.com/"});
        pool.plan.placement.settings.gateway = serde_json::from_value(gateway).expect("a gateway");
        pool.plan.settle();
        let [a, b] = &pool.sidecars;
        pool.plan.publish(&[a, b, &pool.router]).await;
        pool
    }

    /// What the gateway says to a token.
    async fn look_up(&self, token: &str) -> Answer {
        let path = format!("/gateway?access_token={token}");
        Http::default().send(Method::GET, self.router.listen, &path, "").await.expect("an answer")
    }

    /// Panics unless a token is refused with a status, for a reason that is counted and told.
    async fn refuses(&self, token: &str, status: u16, reason: &str) {
        let series = format!("wspool_tokens_refused_total{{reason=\"{reason}\"}}");
        let before = self.router.metric(&series).await;
        let refused = self.enter(&with_token(token), "").await;
        assert_eq!(refused.status(), status, "{reason}: {token}: {}", refused.head);
        let wanted = if status == 401 { "www-authenticate: Bearer error=\"invalid_token\"" } else { "retry-after: " };
        assert!(refused.head.contains(&format!("\r\n{wanted}")), "{reason}: {}", refused.head);
        assert_eq!(self.router.metric(&series).await, before + 1, "{reason} is not counted");
    }
}

#[tokio::test]
async fn a_claim_of_a_checked_token_is_the_key_wherever_the_token_stands() {
    let keys = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(|a| SigningKey::new(&format!("{a:?}"), a));
    let publisher = Publisher::start(&[&keys[0], &keys[1], &keys[2]]).await;
    let mut spec = by_token(&publisher.uri());
    spec.jwt.as_mut().expect("it").token = vec![
        TokenSource::Header("Authorization".into()),
        TokenSource::Query("access_token".into()),
        TokenSource::Cookie("session".into()),
        TokenSource::Subprotocol("bearer.".into()),
    ];
    let pool = Pool::new(spec).await;
    for user in pool.keys() {
        for key in &keys {
            pool.owned(&user, &with_token(&key.token(&user)), "").await;
        }
        let token = keys[1].token(&user);
        pool.owned(&user, "/", &format!("Authorization: Bearer {token}\r\n")).await;
        pool.owned(&user, "/", &format!("authorization: bearer  {token}\r\n")).await;
        pool.owned(&user, "/", &format!("Cookie: a=b; session={token}\r\n")).await;
        pool.owned(&user, "/", &format!("Sec-WebSocket-Protocol: chat, bearer.{token}\r\n")).await;
    }
    until("each sidecar has asked for the keys, once", async || equal(&publisher.asked(), &3)).await;
}

#[tokio::test]
async fn a_token_without_the_claim_leaves_the_key_to_the_next_source() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let mut spec = by_token(&publisher.uri());
    spec.from = vec![KeySource::Jwt("user_id".into()), KeySource::Query("user".into())];
    let pool = Pool::new(spec).await;
    let user = pool.keys().remove(0);
    let claim = |value: Value| {
        let mut claims = claims("somebody");
        claims["user_id"] = value;
        with_token(&key.sign(&claims))
    };
    pool.owned(&user, &claim(json!(user)), "").await;
    pool.owned("4711", &format!("{}&user={user}", claim(json!(4711))), "").await;
    pool.owned(&user, &format!("{}&user={user}", with_token(&key.token("ann"))), "").await;
    pool.owned(&user, &format!("/?user={user}"), "").await;
    for value in [json!(["ann"]), json!({"id": 1}), json!(1.5), json!(true)] {
        let refused = pool.enter(&format!("{}&user={user}", claim(value.clone())), "").await;
        assert_eq!(refused.status(), 401, "{value} is no key");
    }
}

#[tokio::test]
async fn whatever_its_issuer_did_not_sign_for_this_pool_and_this_time_is_refused() {
    let (key, rsa) = (SigningKey::new("1", Algorithm::ES256), SigningKey::new("2", Algorithm::RS256));
    let publisher = Publisher::start(&[&key, &rsa]).await;
    let pool = Pool::new(by_token(&publisher.uri())).await;
    let changed = |changes: &[(&str, Value)]| {
        let mut claims = claims("ann");
        for (name, value) in changes {
            if value.is_null() {
                claims.as_object_mut().expect("claims").remove(*name);
            } else {
                claims[name] = value.clone();
            }
        }
        claims
    };
    let signed = |changes: &[(&str, Value)]| key.sign(&changed(changes));
    let good = key.token("ann");
    pool.owned("ann", &with_token(&good), "").await;

    pool.refuses(&signed(&[("exp", json!(now() - 31))]), 401, "expired").await;
    pool.refuses(&signed(&[("exp", Value::Null)]), 401, "claim").await;
    pool.refuses(&signed(&[("exp", json!("never"))]), 401, "claim").await;
    pool.refuses(&signed(&[("nbf", json!(now() + 90))]), 401, "not_yet_valid").await;
    pool.refuses(&signed(&[("iss", json!("https://other.example.com/"))]), 401, "issuer").await;
    pool.refuses(&signed(&[("iss", Value::Null)]), 401, "issuer").await;
    pool.refuses(&signed(&[("aud", json!("mail"))]), 401, "audience").await;
    pool.refuses(&signed(&[("aud", Value::Null)]), 401, "audience").await;
    // Clocks may be half a minute apart.
    for close in [("exp", json!(now() - 5)), ("nbf", json!(now() + 5)), ("aud", json!(["mail", AUDIENCE]))] {
        pool.owned("ann", &with_token(&signed(&[close])), "").await;
    }

    for nonsense in ["x", "a.b.c", "eyJ.eyJ.x", &good[1..]] {
        pool.refuses(nonsense, 401, "malformed").await;
    }
    let parts: Vec<&str> = good.split('.').collect();
    let other = key.token("bob");
    let other: Vec<&str> = other.split('.').collect();
    pool.refuses(&format!("{}.{}.{}", parts[0], other[1], parts[2]), 401, "signature").await;
    pool.refuses(&SigningKey::new("1", Algorithm::ES256).token("ann"), 401, "signature").await;
    pool.refuses(&format!("{}.{}.", parts[0], parts[1]), 401, "signature").await;
    // Named like the RSA key, but of another kind: no key fits it.
    pool.refuses(&SigningKey::new("2", Algorithm::ES256).token("ann"), 401, "unknown_key").await;
    pool.refuses(&SigningKey::new("3", Algorithm::ES256).token("ann"), 401, "unknown_key").await;

    for none in ["none", "None", "nOnE"] {
        pool.refuses(&unsigned(&json!({"alg": none, "kid": "1"}), &claims("ann")), 401, "algorithm").await;
    }
    pool.refuses(&unsigned(&json!({"alg": "ES256", "kid": "1"}), &claims("ann")), 401, "signature").await;
    let secret = SigningKey::secret("1", b"secret");
    pool.refuses(&secret.token("ann"), 401, "algorithm").await;

    assert_eq!(pool.enter("/", "Authorization: Basic YTpi\r\n").await.status(), 401);
    assert_eq!(pool.book.visits().len(), 4, "something else has reached an app");
    // It stays as it was for those who are who they say.
    pool.owned("ann", &with_token(&good), "").await;
}

#[tokio::test]
async fn a_public_key_is_never_the_secret_of_a_signature() {
    let rsa = SigningKey::new("1", Algorithm::RS256);
    let listed = [SigningAlgorithm::RS256, SigningAlgorithm::HS256];
    let (spec, _folder) = by_file(&key_set(&[&rsa]), &listed);
    let pool = Pool::new(spec).await;
    pool.owned("ann", &with_token(&rsa.token("ann")), "").await;
    let jwk = rsa.jwk();
    for public in [jwk["n"].as_str().expect("a modulus").to_owned(), jwk.to_string()] {
        let forged = SigningKey::secret("1", public.as_bytes()).token("ann");
        pool.refuses(&forged, 401, "unknown_key").await;
    }
}

#[tokio::test]
async fn a_secret_in_a_file_checks_tokens_and_a_published_one_does_not() {
    let secret = SigningKey::secret("1", b"a secret of thirty-two characters");
    let (spec, folder) = by_file(&key_set(&[&secret]), &[SigningAlgorithm::HS256]);
    let pool = Pool::new(spec).await;
    pool.owned("ann", &with_token(&secret.token("ann")), "").await;
    // The file is replaced as the kubelet does it: two keys, then the new one alone.
    let next = SigningKey::secret("2", b"another secret of this many characters");
    let file = folder.path().join("jwks.json");
    let replace = |text: &str| {
        let draft = folder.path().join("draft");
        std::fs::write(&draft, text).expect("a file");
        std::fs::rename(draft, &file).expect("a file in its place");
    };
    replace(&key_set(&[&secret, &next]));
    pool.owned("ann", &with_token(&next.token("ann")), "").await;
    pool.owned("ann", &with_token(&secret.token("ann")), "").await;
    replace(&key_set(&[&next]));
    pool.refuses(&secret.token("ann"), 401, "unknown_key").await;
    // What is no key set changes nothing, nor does a file that vanishes.
    replace("{\"keys\": ");
    pool.owned("ann", &with_token(&next.token("ann")), "").await;
    std::fs::remove_file(&file).expect("the file");
    pool.owned("ann", &with_token(&next.token("ann")), "").await;

    // A server that shows a secret to everybody has no key that can be used.
    let publisher = Publisher::start(&[&secret]).await;
    let pool = Pool::new(by_token(&publisher.uri())).await;
    pool.refuses(&SigningKey::new("1", Algorithm::ES256).token("ann"), 503, "no_keys").await;
}

#[tokio::test]
async fn a_new_key_is_believed_at_its_first_token_and_a_withdrawn_one_no_longer() {
    let (old, new) = (SigningKey::new("old", Algorithm::RS256), SigningKey::new("new", Algorithm::EdDSA));
    let publisher = Publisher::start(&[&old]).await;
    let pool = Pool::new(by_token(&publisher.uri())).await;
    pool.owned("ann", &with_token(&old.token("ann")), "").await;
    until("each sidecar has the keys", async || equal(&publisher.asked(), &3)).await;
    publisher.publish(&[&new]);
    pool.owned("ann", &with_token(&new.token("ann")), "").await;
    assert_eq!(publisher.asked(), 4, "only where the token came in");
    pool.refuses(&old.token("ann"), 401, "unknown_key").await;
    // Anybody can make up names of keys: they do not make us ask each time.
    for _ in 0..20 {
        pool.refuses(&SigningKey::new("made-up", Algorithm::ES256).token("ann"), 401, "unknown_key").await;
    }
    assert_eq!(publisher.asked(), 4);
    // A key that is known by no name is found, too.
    let header = Header::new(Algorithm::EdDSA);
    pool.owned("ann", &with_token(&new.sign_with(&header, &claims("ann"))), "").await;
}

#[tokio::test]
async fn without_keys_nobody_is_let_in_and_known_keys_go_on_when_the_issuer_is_away() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let address = ports::free();
    let pool = Pool::new(by_token(&format!("http://{address}/jwks.json"))).await;
    pool.refuses(&key.token("ann"), 503, "no_keys").await;
    assert!(pool.router.metric("wspool_jwks_fetches_total{result=\"unreachable\"}").await > 0);
    assert_eq!(pool.enter("/", "").await.status(), 101, "who has no token needs no keys");

    let publisher = Publisher::start_at(address, &[&key]).await;
    until("its keys are there", async || equal(&pool.enter(&with_token(&key.token("ann")), "").await.status(), &101))
        .await;
    publisher.answer(StatusCode::INTERNAL_SERVER_ERROR, "");
    // Nobody can tell whether this one is published now.
    let unknown = SigningKey::new("2", Algorithm::ES256);
    until("a token makes the sidecar ask again", async || {
        assert_ne!(pool.enter(&with_token(&unknown.token("ann")), "").await.status(), 101);
        match pool.router.metric("wspool_jwks_fetches_total{result=\"status\"}").await {
            0 => Err("not asked".into()),
            _ => Ok(()),
        }
    })
    .await;
    pool.refuses(&unknown.token("ann"), 503, "no_keys").await;
    pool.owned("ann", &with_token(&key.token("ann")), "").await;
    drop(publisher);
    pool.owned("ann", &with_token(&key.token("ann")), "").await;
}

#[tokio::test]
async fn a_pool_that_rejects_asks_for_a_token_and_one_that_spreads_lets_guests_in() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let pool = Pool::new(KeySpec { missing: Missing::Reject, ..by_token(&publisher.uri()) }).await;
    let refused = pool.enter("/?user=ann", "").await;
    assert_eq!(refused.status(), 401);
    assert!(refused.head.contains("\r\nwww-authenticate: Bearer\r\n"), "{}", refused.head);
    assert_eq!(pool.router.metric("wspool_tokens_refused_total{reason=\"missing\"}").await, 1);

    let pool = Pool::new(by_token(&publisher.uri())).await;
    assert_eq!(pool.enter("/?user=ann", "").await.status(), 101);
}

#[tokio::test]
async fn a_plain_request_with_an_expired_token_is_left_to_the_app() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let backend = harness::Backend::start().await;
    let sidecar = harness::Sidecar::named("a").upstream(backend.address).start().await;
    let mut plan = harness::Plan::new();
    plan.placement.settings.key = by_token(&publisher.uri());
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    let mut claims = claims("ann");
    claims["exp"] = json!(now() - 600);
    let mut client = Wire::dial(sidecar.listen).await;
    let token = key.sign(&claims);
    client
        .send(format!("POST /renew HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"))
        .await;
    assert!(backend.accept().await.head().await.contains(&token), "the app gets it as it is");
}

#[tokio::test]
async fn keys_come_over_tls_from_a_server_of_a_known_authority_only() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let Certified { authority, certificate, key: secret } = certified();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a listener for tokio");
    let address = listener.local_addr().expect("its address");
    let tls = RustlsConfig::from_pem(certificate.into_bytes(), secret.into_bytes()).await.expect("a TLS server");
    let routes = Publisher::routes_of(&[&key]);
    let server = axum_server::from_tcp_rustls(listener, tls).expect("a server");
    let serving = tokio::spawn(async move { server.serve(routes.into_make_service()).await });

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, authority).expect("a file");
    let mut spec = by_token(&format!("https://localhost:{}/jwks.json", address.port()));
    let stranger = Pool::new(spec.clone()).await;
    stranger.refuses(&key.token("ann"), 503, "no_keys").await;
    spec.jwt.as_mut().expect("it").ca_from = Some(Mounted::File(file));
    let pool = Pool::new(spec).await;
    pool.owned("ann", &with_token(&key.token("ann")), "").await;
    serving.abort();
}

#[tokio::test]
async fn the_gateway_answers_a_token_as_its_handshake_is_answered() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let pool = Pool::with_gateway(by_token(&publisher.uri())).await;
    for user in pool.keys() {
        let answer: Value = pool.look_up(&key.token(&user)).await.json().expect("where to connect");
        let slot = i64::from(pool.plan.owner(&user) == "b");
        assert_eq!((&answer["slot"], &answer["url"]), (&slot.into(), &format!("wss://s{slot}.example.com/").into()));
    }
    let counted = pool.router.metric("wspool_gateway_answers_total{reason=\"located\"}").await;
    assert_eq!(counted, u64::try_from(pool.keys().len()).expect("a few"));

    let mut stale = claims("ann");
    stale["exp"] = json!(now() - 600);
    let refused = pool.look_up(&key.sign(&stale)).await;
    let says = "Bearer error=\"invalid_token\", error_description=\"the token has expired\"";
    assert_eq!((refused.status, refused.header("www-authenticate")), (StatusCode::UNAUTHORIZED, says));
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(pool.router.metric("wspool_tokens_refused_total{reason=\"expired\"}").await, 1);

    let pool = Pool::with_gateway(by_token(&format!("http://{}/jwks.json", ports::free()))).await;
    let refused = pool.look_up(&key.token("ann")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
}

#[tokio::test]
async fn every_algorithm_that_can_be_listed_is_taken() {
    use SigningAlgorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
    let rsa = SigningKey::new("rsa", Algorithm::RS256);
    let secret = SigningKey::secret("secret", &[7; 64]);
    let keys = [
        rsa.clone(),
        rsa.clone().signing(Algorithm::RS384),
        rsa.clone().signing(Algorithm::RS512),
        rsa.clone().signing(Algorithm::PS256),
        rsa.clone().signing(Algorithm::PS384),
        rsa.signing(Algorithm::PS512),
        SigningKey::new("256", Algorithm::ES256),
        SigningKey::new("384", Algorithm::ES384),
        SigningKey::new("ed", Algorithm::EdDSA),
        secret.clone(),
        secret.clone().signing(Algorithm::HS384),
        secret.signing(Algorithm::HS512),
    ];
    let all = [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, HS384, HS512];
    let (spec, _folder) = by_file(&key_set(&keys.iter().collect::<Vec<_>>()), &all);
    let pool = Pool::new(spec).await;
    for key in &keys {
        pool.owned("ann", &with_token(&key.token("ann")), "").await;
    }
}

#[tokio::test]
async fn tokens_never_reach_a_log() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let mut pool = Pool::new(by_token(&publisher.uri())).await;
    let mut stale = claims("ann");
    stale["exp"] = json!(now() - 600);
    let tokens = [key.token("ann"), key.sign(&stale), SigningKey::new("9", Algorithm::ES256).token("ann")];
    for token in &tokens {
        pool.enter(&with_token(token), "").await;
        let mut wire = Wire::dial(pool.router.listen).await;
        wire.send(handshake("/", &format!("Authorization: Bearer {token}\r\n"))).await;
        wire.head().await;
    }
    let log = pool.router.process().log();
    assert!(log.contains("TRACE"), "it is not verbose: {log}");
    for part in tokens.iter().flat_map(|token| token.split('.')).filter(|part| part.len() > 20) {
        let line = log.lines().find(|line| line.contains(part));
        assert_eq!(line, None, "a token is in the log");
    }
}

#[tokio::test]
async fn a_longer_leeway_takes_a_token_that_has_just_expired() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let mut spec = by_token(&publisher.uri());
    spec.jwt.as_mut().expect("it").leeway = GoDuration(Duration::from_secs(300));
    let pool = Pool::new(spec).await;
    let mut claims = claims("ann");
    claims["exp"] = json!(now() - 200);
    pool.owned("ann", &with_token(&key.sign(&claims)), "").await;
    claims["exp"] = json!(now() - 301);
    pool.refuses(&key.sign(&claims), 401, "expired").await;
}
