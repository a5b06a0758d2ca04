//! The example chats in rooms: servers in Node and Python that know nothing of each other share their rooms, and so do
//! those of Socket.IO, by its own adapter.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use harness::redis::Redis;
use harness::script::Script;
use harness::sidecar::Start;
use harness::wait::equal;
use harness::{Plan, Sidecar, ports, until};
use ring::settings::{KeySource, Messages, Notice, NoticeProtocol, Settings};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

/// What there is of Socket.IO's clients.
const ROOMS: usize = 4;
const MEMBERS: usize = 24;

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

/// A sidecar with a server that finds the others by the sidecar's API.
async fn server(name: &str, script: &str) -> (Sidecar, Script) {
    let app = ports::free();
    let sidecar = sidecar(name, app).with_api().start().await;
    let api = format!("http://{}", sidecar.api.expect("a local API"));
    (sidecar, start(name, app, script, ("WSPOOL_API_URL", &api)).await)
}

/// A sidecar with a server of Socket.IO that finds the others by Redis.
async fn with_redis(name: &str, redis: &Redis) -> (Sidecar, Script) {
    let app = ports::free();
    let sidecar = sidecar(name, app).start().await;
    (sidecar, start(name, app, "node/socket-io.js", ("REDIS_URL", &redis.url())).await)
}

fn sidecar(name: &str, app: SocketAddr) -> Start {
    Sidecar::named(name).with_file("--peer-keys", "peers", "secret-between-sidecars").upstream(app)
}

async fn start(name: &str, app: SocketAddr, script: &str, variable: (&str, &str)) -> Script {
    let script = Script::example(script, &["--listen", &app.to_string(), "--name", name], variable);
    until("the app listens", async || {
        tokio::net::TcpStream::connect(app).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    script
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

#[tokio::test]
async fn rooms_of_socket_io_are_shared_by_its_redis_adapter_and_go_on_after_a_move() {
    let redis = Redis::start().await;
    let (a, _first) = with_redis("a", &redis).await;
    let (b, _second) = with_redis("b", &redis).await;
    let (c, _third) = with_redis("c", &redis).await;
    let notice = Notice { protocol: NoticeProtocol::SocketIO, ..Notice::default() };
    let mut plan = Plan::with(Settings { notice, ..Settings::default() });
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a, &b, &c]).await;

    let urls = [&a, &b, &c].map(|sidecar| format!("http://{}", sidecar.listen));
    let [rooms, members] = [ROOMS, MEMBERS].map(|count| count.to_string());
    let crowd = Script::node("rooms.js", &[&rooms, &members, &urls[0], &urls[1], &urls[2]]);
    are_at_their_owners(&crowd, &plan).await;
    hear_each_other(&crowd, 1).await;

    plan.hold(&[(0, &a), (1, &b), (2, &c)]);
    plan.publish(&[&a, &b, &c]).await;
    plan.move_all(&[&a, &b], 4).await;
    are_at_their_owners(&crowd, &plan).await;
    hear_each_other(&crowd, 2).await;
    let welcomes = crowd.lines().iter().filter(|line| line.starts_with("at ")).count();
    let had_to_move = users().filter(|user| plan.owner(user) == "c").count();
    assert_eq!(welcomes, MEMBERS + had_to_move, "only those who had to move have moved");
}

/// Waits until each member has been welcomed by the owner of its key.
async fn are_at_their_owners(crowd: &Script, plan: &Plan) {
    let owners: BTreeMap<_, _> = users().map(|user| (user.clone(), plan.owner(&user))).collect();
    until("each member is at the owner of its key", async || {
        let said = crowd.lines();
        let welcomes = said.iter().filter_map(|line| line.strip_prefix("at ")?.split_once(' '));
        equal(&welcomes.map(|(user, server)| (user.to_owned(), server.to_owned())).collect(), &owners)
    })
    .await;
}

/// All say something in their rooms; waits until all have heard each other, once.
async fn hear_each_other(crowd: &Script, round: usize) {
    crowd.go_on();
    let room = |user: &str| user["user-".len()..].parse::<usize>().expect("a number") % ROOMS;
    let pairs = users().flat_map(|hears| users().map(move |says| (hears.clone(), says)));
    let mut expected: Vec<_> = pairs
        .filter(|(hears, says)| room(hears) == room(says))
        .map(|(hears, says)| format!("heard {hears} {round} {says}"))
        .collect();
    expected.sort();
    until("all have heard each other", async || {
        let of_this_round = |line: &String| line.starts_with("heard ") && line.contains(&format!(" {round} "));
        let mut heard: Vec<_> = crowd.lines().into_iter().filter(of_this_round).collect();
        heard.sort();
        equal(&heard, &expected)
    })
    .await;
}

fn users() -> impl Iterator<Item = String> {
    (0..MEMBERS).map(|number| format!("user-{number}"))
}
