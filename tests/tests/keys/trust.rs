//! What a key proves, at the server that holds the connection.

use harness::issuer::{Publisher, SigningKey};
use harness::wait::equal;
use harness::{Backend, Plan, Sidecar, Wire, until};
use jsonwebtoken::Algorithm;
use ring::settings::{KeySource, KeySpec, Trust};

use crate::tokens::by_token;
use crate::{Pool, handshake};

#[tokio::test]
async fn a_checked_token_is_trusted_where_the_connection_is_held() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let spec = KeySpec { trust: Trust::Verified, ..by_token(&publisher.uri()) };
    let pool = Pool::new(spec).await;
    let user = pool.keys().remove(0);
    // It enters at the router, which checks; the owner believes its peer.
    let target = format!("/?access_token={}", key.token(&user));
    let mut held = pool.enter(&target, "").await;
    assert_eq!(held.server().await, pool.plan.owner(&user));
    assert_eq!(pool.trusted().await, 1);
    let direct = crate::Entered::at(pool.sidecars[0].listen, &target, "").await;
    assert_eq!((direct.status(), pool.trusted().await), (101, 2));
    // Without a token there is nobody to trust, whatever a client says in our name.
    let forged = format!("wspool-key: {user}\r\nwspool-verified: 1\r\nwspool-from: router\r\nwspool-target: a\r\n");
    assert_eq!(pool.enter("/", &forged).await.status(), 101);
    assert_eq!(pool.trusted().await, 2);
    drop((held, direct));
    until("nobody is held", async || equal(&pool.trusted().await, &0)).await;
}

#[tokio::test]
async fn a_token_that_only_routes_proves_nothing() {
    let key = SigningKey::new("1", Algorithm::ES256);
    let publisher = Publisher::start(&[&key]).await;
    let pool = Pool::new(by_token(&publisher.uri())).await;
    let user = pool.keys().remove(0);
    let held = pool.enter(&format!("/?access_token={}", key.token(&user)), "").await;
    assert_eq!((held.status(), pool.trusted().await), (101, 0));
}

/// A sidecar whose app confirms keys, and which is played by hand.
struct Asserting {
    app: Backend,
    sidecar: Sidecar,
    router: Sidecar,
}

impl Asserting {
    async fn new(trust: Trust) -> Self {
        let app = Backend::start().await;
        let sidecar = Sidecar::named("a").upstream(app.address).start().await;
        let router = Sidecar::router().await;
        let mut plan = Plan::new();
        plan.placement.settings.key =
            KeySpec { from: vec![KeySource::Query("user".into())], trust, ..KeySpec::default() };
        plan.hold(&[(0, &sidecar)]);
        plan.others(&[&router]);
        plan.publish(&[&sidecar, &router]).await;
        Self { app, sidecar, router }
    }

    /// A client of a key, whose app answers its handshake with this header.
    async fn enter(&self, key: &str, answer: &str) -> (Wire, Wire) {
        let mut client = Wire::dial(self.router.listen).await;
        client.send(handshake(&format!("/?user={key}"), "wspool-key: forged\r\n")).await;
        let mut app = self.app.accept().await;
        let asked = app.head().await.to_lowercase();
        assert!(!asked.contains("wspool-key"), "the client's own has reached the app: {asked}");
        app.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{answer}\r\n"
        ))
        .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(!head.to_lowercase().contains("wspool"), "what the app asserts is not for clients: {head}");
        (client, app)
    }

    async fn trusted(&self) -> u64 {
        self.sidecar.status().await.trusted
    }

    async fn asserted(&self, result: &str) -> u64 {
        self.sidecar.metric(&format!("wspool_key_assertions_total{{result=\"{result}\"}}")).await
    }
}

#[tokio::test]
async fn a_key_is_trusted_when_the_app_confirms_it_and_only_then() {
    let pool = Asserting::new(Trust::AppAsserted).await;
    let _confirmed = pool.enter("J%C3%BCrgen", "WSPool-Key: J%c3%bcrgen\r\n").await;
    assert_eq!((pool.trusted().await, pool.asserted("confirmed").await), (1, 1));
    // The connection goes on: the app has accepted it. But the key is not proven.
    let (mut client, mut app) = pool.enter("ann", "wspool-key: bob\r\n").await;
    app.send([0x81, 2, b'h', b'i']).await;
    assert_eq!(client.exactly(4).await, [0x81, 2, b'h', b'i']);
    let _silent = pool.enter("ann", "").await;
    let _empty = pool.enter("ann", "wspool-key: \r\n").await;
    assert_eq!(pool.trusted().await, 1);
    assert_eq!((pool.asserted("other_key").await, pool.asserted("nothing").await), (2, 1));
    assert_eq!(pool.sidecar.metric("wspool_trusted_connections").await, 1);
}

#[tokio::test]
async fn where_nobody_asked_the_app_its_word_counts_for_nothing() {
    let pool = Asserting::new(Trust::Routing).await;
    let _held = pool.enter("ann", "wspool-key: ann\r\n").await;
    assert_eq!((pool.trusted().await, pool.asserted("confirmed").await), (0, 0));
}
