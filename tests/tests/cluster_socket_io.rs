//! Socket.IO in a whole cluster: its server and its client as the libraries make them, which begin by polling and then
//! upgrade to a WebSocket.

use std::collections::BTreeMap;

use harness::cluster::{Owners, PLAN, Plan, Scene};
use harness::script::Script;
use harness::until;

const CLIENTS: usize = 20;

/// What the clients have said so far.
struct Heard(Vec<String>);

impl Heard {
    /// What each user said last, of those things that begin so.
    fn last(&self, beginning: &str) -> BTreeMap<&str, &str> {
        self.all(beginning).collect()
    }

    /// (user, the rest) of each line that begins so.
    fn all(&self, beginning: &str) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.0.iter().filter_map(move |line| line.strip_prefix(beginning)?.strip_prefix(' '));
        lines.filter_map(|line| line.split_once(' '))
    }
}

/// Waits until all clients have a WebSocket at their owners, each but for the `moved` for the first time.
async fn at_home(scene: &Scene, clients: &Script, moved: impl Fn(&Owners) -> usize) -> (Owners, Heard) {
    until("every client has upgraded at its owner", async || {
        let (owners, heard) = (scene.owners().await?, Heard(clients.lines()));
        let (servers, upgrades) = (heard.last("here"), heard.all("upgraded").count());
        let stray = servers.iter().find(|(user, server)| owners.of(user).as_deref() != Some(server));
        if servers.len() == CLIENTS && stray.is_none() && upgrades == CLIENTS + moved(&owners) {
            return Ok((owners, heard));
        }
        Err(format!("{} are there, of these {stray:?} elsewhere, with {upgrades} upgrades", servers.len()))
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn socket_io_clients_that_must_move_reconnect_once_and_upgrade_again_and_no_other_does() {
    let scene = Scene::new("socket-io", Plan { app: "/pod/pod-socket-io.js, $(POD_NAME)", ..PLAN }).await;
    let url = format!("http://{}", scene.service().await);
    let clients = Script::node("socket-io-client.js", &[&url, &CLIENTS.to_string()]);
    let (before, heard) = at_home(&scene, &clients, |_| 0).await;
    assert_eq!(heard.all("gone").count(), 0);

    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    scene.rolled_out().await;
    scene.stable(3).await;
    let users: Vec<String> = (0..CLIENTS).map(|number| format!("user-{number}")).collect();
    let must_move = |now: &Owners| {
        let moved = users.iter().filter(|user| before.of(user) != now.of(user));
        moved.map(String::as_str).collect::<Vec<_>>()
    };
    let (after, heard) = at_home(&scene, &clients, |now| must_move(now).len()).await;
    let mut gone: Vec<&str> = heard.all("gone").map(|(user, _)| user).collect();
    let mut expected = must_move(&after);
    gone.sort_unstable();
    expected.sort_unstable();
    assert!(!expected.is_empty(), "of 20 keys none belongs to the third of three");
    assert_eq!(gone, expected);
}
