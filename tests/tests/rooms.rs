//! The example chats in rooms: servers in Node and Python that know nothing of each other share their rooms.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use harness::script::Script;
use harness::{Plan, Sidecar, ports, until};
use ring::settings::{KeySource, Messages, Settings};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

/// A client in a room, which comes back by itself.
struct Member {
    say: mpsc::Sender<String>,
    heard: mpsc::Receiver<String>,
    task: JoinHandle<()>,
}

impl Member {
    /// Enters a room, and waits for the server that says it has it.
    async fn enter(entry: SocketAddr, room: u32) -> (Self, String) {
        let (say, mut to_say) = mpsc::channel::<String>(16);
        let (hear, heard) = mpsc::channel(1_024);
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut socket, _)) = connect_async(format!("ws://{entry}/rooms/{room}")).await else {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                };
                loop {
                    tokio::select! {
                        Some(text) = to_say.recv() => socket.send(Message::text(text)).await.expect("an open connection"),
                        received = socket.next() => match received {
                            Some(Ok(Message::Text(text))) => {
                                let _ = hear.send(text.to_string()).await;
                            }
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => break,
                        },
                    }
                }
            }
        });
        let mut member = Self { say, heard, task };
        let server = member.hears().await;
        (member, server)
    }

    async fn says(&self, text: &str) {
        self.say.send(text.to_owned()).await.expect("a member that is there");
    }

    async fn hears(&mut self) -> String {
        let heard = tokio::time::timeout(std::time::Duration::from_secs(20), self.heard.recv()).await;
        heard.expect("a text in time").expect("a member that is there")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A sidecar, its server, and what holds both.
async fn server(name: &str, script: &str) -> (Sidecar, Script) {
    let app = ports::free();
    let start = Sidecar::named(name).with_file("--peer-keys", "peers", "secret-between-sidecars").upstream(app);
    let sidecar = start.with_api().start().await;
    let api = format!("http://{}", sidecar.api.expect("a local API"));
    let arguments = ["--listen", &app.to_string(), "--name", name];
    let script = Script::example(script, &arguments, ("WSPOOL_API_URL", &api));
    until("the app listens", async || {
        tokio::net::TcpStream::connect(app).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    (sidecar, script)
}

#[tokio::test]
async fn servers_in_node_and_python_share_rooms_whose_members_they_do_not_know_also_over_a_move() {
    const ROOMS: u32 = 12;
    let settings = Settings { messages: Messages { allow_unverified: true }, ..Settings::default() };
    let mut plan = Plan::with(settings);
    plan.placement.settings.key.from = vec![KeySource::Path("/rooms/{key}".into())];
    let (a, _node) = server("node", "node/rooms.js").await;
    let (b, _python) = server("python", "python/rooms.py").await;
    let (c, _third) = server("third", "node/rooms.js").await;
    plan.hold(&[(0, &a), (1, &b)]);
    plan.others(&[&c]);
    plan.publish(&[&a, &b, &c]).await;

    let mut rooms = Vec::new();
    for room in 0..ROOMS {
        let mut members = Vec::new();
        for entry in [&a, &b, &c] {
            let (member, server) = Member::enter(entry.listen, room).await;
            assert_eq!(server, format!("{} has the room {room}", plan.owner(&room.to_string())));
            members.push(member);
        }
        rooms.push(members);
    }
    assert!((0..ROOMS).any(|room| plan.owner(&room.to_string()) == "python"));
    all_hear(&mut rooms, "before").await;

    plan.hold(&[(0, &a), (1, &b), (2, &c)]);
    plan.others(&[]);
    plan.publish(&[&a, &b, &c]).await;
    plan.move_all(&[&a, &b], 6).await;
    let mut moved = 0;
    for (room, members) in (0..).zip(&mut rooms) {
        if plan.owner(&room.to_string()) == "third" {
            moved += 1;
            for member in members {
                assert_eq!(member.hears().await, format!("third has the room {room}"));
            }
        }
    }
    assert!(moved > 0, "no room has moved");
    all_hear(&mut rooms, "after").await;
}

/// The first member of each room says something there, and something in the next room.
async fn all_hear(rooms: &mut [Vec<Member>], when: &str) {
    for here in 0..rooms.len() {
        let next = (here + 1) % rooms.len();
        rooms[here][0].says(&format!("{when}, in {here}")).await;
        for member in &mut rooms[here] {
            assert_eq!(member.hears().await, format!("{when}, in {here}"));
        }
        rooms[here][0].says(&format!("/to {next} {when}, from {here}")).await;
        for member in &mut rooms[next] {
            assert_eq!(member.hears().await, format!("{when}, from {here}"));
        }
    }
}
