//! Only clients whose key proves who they are get messages, unless the pool says otherwise.

use harness::frames::{opcode, plain};
use harness::{Backend, Plan, Sidecar, Wire};
use http::Method;
use ring::settings::{KeySource, KeySpec, Trust};

use crate::{happened, refused};

struct Scene {
    app: Backend,
    sidecar: Sidecar,
}

impl Scene {
    async fn new(trust: Trust) -> Self {
        let app = Backend::start().await;
        let sidecar = Sidecar::named("a").upstream(app.address).with_api().start().await;
        let mut plan = Plan::new();
        let from = vec![KeySource::Query("user".into())];
        plan.placement.settings.key = KeySpec { from, trust, ..KeySpec::default() };
        plan.hold(&[(0, &sidecar)]);
        plan.publish(&[&sidecar]).await;
        Self { app, sidecar }
    }

    /// A client of the key `ann`, whose app says this of it in its 101.
    async fn enter(&self, said: &str) -> (Wire, Wire) {
        let mut client = Wire::dial(self.sidecar.listen).await;
        client.send(harness::wire::HANDSHAKE).await;
        let mut server = self.app.accept().await;
        server.head().await;
        server.send(harness::wire::SWITCHING.replace("\r\n\r\n", &format!("\r\n{said}\r\n"))).await;
        client.head().await;
        (client, server)
    }
}

/// Panics if a client has got anything before what its app sends now.
async fn got_nothing((client, server): &mut (Wire, Wire)) {
    let sign = plain(opcode::TEXT, b"sign");
    server.send(&sign).await;
    assert_eq!(client.exactly(sign.len()).await, sign);
}

#[tokio::test]
async fn a_key_that_only_routes_gets_no_messages() {
    let scene = Scene::new(Trust::Routing).await;
    let mut victim = scene.enter("").await;
    let said = refused(&scene.sidecar.send_to("ann", "secret").await, 403, "unverified");
    assert!(said.contains("spec.key.trust") && said.contains("spec.messages.allowUnverified"), "{said}");
    let text = [("content-type", "text/plain")];
    refused(&scene.sidecar.ask_api(&text, Method::POST, "/v1/messages", "secret").await, 403, "unverified");
    got_nothing(&mut victim).await;
}

#[tokio::test]
async fn a_connection_that_the_app_did_not_confirm_gets_none_of_its_keys_messages() {
    let scene = Scene::new(Trust::AppAsserted).await;
    let (mut confirmed, _server) = scene.enter("wspool-key: ann\r\n").await;
    let mut impostors = [scene.enter("").await, scene.enter("wspool-key: bob\r\n").await];
    let ours = plain(opcode::TEXT, b"secret");
    happened(&scene.sidecar.send_to("ann", "secret").await, 1, 0);
    assert_eq!(confirmed.exactly(ours.len()).await, ours);
    let text = [("content-type", "text/plain")];
    happened(&scene.sidecar.ask_api(&text, Method::POST, "/v1/messages", "secret").await, 1, 0);
    assert_eq!(confirmed.exactly(ours.len()).await, ours);
    for impostor in &mut impostors {
        got_nothing(impostor).await;
    }
}
