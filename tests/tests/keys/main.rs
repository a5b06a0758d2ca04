//! Where a key is read from, and what it proves.

mod sources;
mod tokens;
mod trust;

use std::net::SocketAddr;

use harness::{App, Guestbook, Plan, Sidecar, Wire};
use ring::settings::KeySpec;

/// Two servers with a sidecar each, and a router at which clients enter.
struct Pool {
    book: Guestbook,
    plan: Plan,
    sidecars: [Sidecar; 2],
    router: Sidecar,
    _apps: [App; 2],
}

impl Pool {
    async fn new(key: KeySpec) -> Self {
        let book = Guestbook::default();
        let apps = [App::start("a", &book).await, App::start("b", &book).await];
        let start =
            |name, app: SocketAddr| Sidecar::named(name).with_file("--peer-keys", "peers", SECRET).upstream(app);
        let sidecars = [start("a", apps[0].address).start().await, start("b", apps[1].address).start().await];
        let router = Sidecar::named("router").with_file("--peer-keys", "peers", SECRET).with("--role", "router");
        let router = router.environment("WSPOOL_LOG", "trace").start().await;
        let mut plan = Plan::new();
        plan.placement.settings.key = key;
        plan.hold(&[(0, &sidecars[0]), (1, &sidecars[1])]);
        plan.others(&[&router]);
        plan.publish(&[&sidecars[0], &sidecars[1], &router]).await;
        Self { book, plan, sidecars, router, _apps: apps }
    }

    /// A handshake at the router.
    async fn enter(&self, target: &str, headers: &str) -> Entered {
        Entered::at(self.router.listen, target, headers).await
    }

    /// Panics unless a handshake comes to the owner of a key.
    async fn owned(&self, key: &str, target: &str, headers: &str) {
        let mut entered = self.enter(target, headers).await;
        assert_eq!(entered.status(), 101, "{target} {headers:?}: {}", entered.head);
        assert_eq!(entered.server().await, self.plan.owner(key), "{key}: {target} {headers:?}");
    }

    /// Keys of both servers.
    fn keys(&self) -> Vec<String> {
        self.sidecars.iter().flat_map(|sidecar| self.plan.keys_of(sidecar, 2)).collect()
    }

    /// How many connections of either server have a key that proves who the client is.
    async fn trusted(&self) -> u64 {
        let [a, b] = &self.sidecars;
        a.status().await.trusted + b.status().await.trusted
    }
}

/// The pool's secret.
const SECRET: &str = "secret-between-sidecars";

/// The answer to a handshake, and what comes behind it.
struct Entered {
    head: String,
    wire: Wire,
}

impl Entered {
    async fn at(entry: SocketAddr, target: &str, headers: &str) -> Self {
        let mut wire = Wire::dial(entry).await;
        wire.send(handshake(target, headers)).await;
        let head = wire.head().await;
        Self { head, wire }
    }

    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line")
    }

    /// The name of the app that has accepted: its greeting.
    async fn server(&mut self) -> String {
        let head = self.wire.exactly(2).await;
        String::from_utf8(self.wire.exactly(usize::from(head[1])).await).expect("a name")
    }
}

/// A handshake's head.
fn handshake(target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: a\r\n{headers}Upgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}
