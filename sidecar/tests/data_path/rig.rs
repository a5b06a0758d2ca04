//! A connection through a relay on real sockets.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use ring::notice;
use ring::settings::Notice;
use sidecar::frame;
use sidecar::relay::{Early, Ended, Hooks, Link, Manner, relay};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// Longer than anything here may take.
const GUARD: Duration = Duration::from_secs(20);

/// Stands for the registry.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    notice: Mutex<Option<Arc<Notice>>>,
    asked: AtomicU32,
    app_closed: AtomicU32,
}

#[derive(Debug)]
pub(crate) struct Shared(Arc<Owner>);

impl Hooks for Shared {
    fn confirm(&self) -> Option<Arc<Notice>> {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        self.0.notice.lock().expect("no test panics with it").clone()
    }

    fn app_closed(&self) {
        self.0.app_closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Owner {
    pub(crate) fn set(&self, notice: Option<Notice>) {
        *self.notice.lock().expect("no test panics with it") = notice.map(Arc::new);
    }

    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn app_closed(&self) -> u32 {
        self.app_closed.load(Ordering::Relaxed)
    }
}

/// A connection through a relay: the client's end and the app's are the test's.
pub(crate) struct Rig {
    pub(crate) client: TcpStream,
    pub(crate) app: TcpStream,
    pub(crate) link: Arc<Link>,
    pub(crate) owner: Arc<Owner>,
    pub(crate) relay: JoinHandle<Ended>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.expect("a connection"), far.expect("a connection").0);
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("a live socket");
    }
    (near, far)
}

pub(crate) async fn rig_with(notice: Notice, early: Early) -> Rig {
    let ((client, near_client), (app, near_app)) = (pair().await, pair().await);
    let (link, owner) = (Arc::new(Link::new()), Arc::new(Owner::default()));
    owner.set(Some(notice));
    let relay = tokio::spawn(relay(near_client, near_app, early, Arc::clone(&link), Shared(Arc::clone(&owner))));
    Rig { client, app, link, owner, relay }
}

pub(crate) async fn rig() -> Rig {
    rig_with(Notice::default(), Early::default()).await
}

/// A text message for a client, in one frame.
pub(crate) fn text(message: &str) -> Vec<u8> {
    frame::message(notice::Message::text(message))
}

pub(crate) type Socket = WebSocketStream<TcpStream>;

pub(crate) async fn client_end(stream: TcpStream) -> Socket {
    WebSocketStream::from_raw_socket(stream, Role::Client, Some(roomy())).await
}

pub(crate) async fn app_end(stream: TcpStream) -> Socket {
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(roomy())).await
}

fn roomy() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

pub(crate) async fn in_time<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, step).await.expect("this should have happened long ago")
}

pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(GUARD, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) async fn next(socket: &mut Socket) -> Message {
    in_time(socket.next()).await.expect("a message before the end").expect("a good message")
}

pub(crate) async fn send(socket: &mut Socket, message: Message) {
    in_time(socket.send(message)).await.expect("an open connection");
}

pub(crate) async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    in_time(stream.read_exact(&mut bytes)).await.expect("so many bytes");
    bytes
}

/// Reads to the end; an error counts as one when it is a reset.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match in_time(stream.read_to_end(&mut bytes)).await {
        Ok(_) => (bytes, false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => (bytes, true),
        Err(error) => panic!("neither an end nor a reset: {error}"),
    }
}

pub(crate) fn close_frame(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::from(code), reason: reason.into() }))
}

pub(crate) fn clean(discarded: u64) -> Ended {
    Ended::Evicted { manner: Manner::Clean, discarded }
}

pub(crate) const RESET: Ended = Ended::Evicted { manner: Manner::Reset, discarded: 0 };

pub(crate) async fn ended(relay: JoinHandle<Ended>) -> Ended {
    in_time(relay).await.expect("a relay that ends")
}
