//! Only clients whose key proves who they are get messages, unless the pool says otherwise.

use harness::frames::{opcode, plain};
use harness::{Backend, Plan, Sidecar, Wire};
use http::Method;
use ring::settings::{KeySource, KeySpec, Trust};

use crate::{happened, refused};

struct Scene {
    app: Backend,
    sidecar: Sidecar,
    plan: Plan,
}

impl Scene {
    async fn new(trust: Trust) -> Self {
        let app = Backend::start().await;
        let sidecar = Self::sidecar("a", &app).await;
        let mut plan = Plan::new();
        let from = vec![KeySource::Query("user".into())];
        plan.placement.settings.key = KeySpec { from, trust, ..KeySpec::default() };
        plan.hold(&[(0, &sidecar)]);
        plan.publish(&[&sidecar]).await;
        Self { app, sidecar, plan }
    }

    async fn sidecar(name: &str, app: &Backend) -> Sidecar {
        let sidecar = Sidecar::named(name).with_file("--peer-keys", "peers", "secret-between-sidecars");
        sidecar.upstream(app.address).with_api().start().await
    }

    /// A client of the key `ann`, whose app says this of it in its 101.
    async fn enter(&self, said: &str) -> (Wire, Wire) {
        self.enter_at(&self.sidecar, said).await
    }

    /// The same at another sidecar beside this app.
    async fn enter_at(&self, sidecar: &Sidecar, said: &str) -> (Wire, Wire) {
        let mut client = Wire::dial(sidecar.listen).await;
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

#[tokio::test]
async fn what_comes_for_a_client_that_is_away_is_held_although_somebody_else_has_come_under_its_key() {
    let mut scene = Scene::new(Trust::AppAsserted).await;
    let (mut ann, server) = scene.enter("wspool-key: ann\r\n").await;
    let b = Scene::sidecar("b", &scene.app).await;
    scene.plan.hold(&[(1, &b)]);
    scene.plan.others(&[&scene.sidecar]);
    scene.plan.publish(&[&scene.sidecar, &b]).await;
    let told = async {
        ann.rest().await.expect("a Close and a FIN");
        drop((ann, server));
    };
    let sources = [&scene.sidecar];
    tokio::join!(told, scene.plan.move_all(&sources, 1));
    let mut impostor = scene.enter_at(&b, "").await;
    assert_eq!(b.status().await.returned, 1);
    for sidecar in [&scene.sidecar, &b] {
        happened(&sidecar.send_to("ann", "secret").await, 0, 1);
    }
    let (mut ann, _server) = scene.enter_at(&b, "wspool-key: ann\r\n").await;
    let ours = [plain(opcode::TEXT, b"secret"), plain(opcode::TEXT, b"secret")].concat();
    assert_eq!(ann.exactly(ours.len()).await, ours);
    happened(&scene.sidecar.send_to("ann", "later").await, 1, 0);
    got_nothing(&mut impostor).await;
    assert_eq!(b.status().await.returned, 1);
}
