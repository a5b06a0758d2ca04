//! Messages from any server's app to the clients of a key.

mod api;
mod devices;
mod drains;
mod extensions;
mod faults;
mod floods;
mod moves;
mod redis;
mod rooms;
mod trust;

use std::net::SocketAddr;

use harness::http::{Answer, refused};
use harness::{App, Crowd, Guestbook, Plan, Sidecar};
use ring::settings::{Messages, Settings};
use serde_json::Value;

/// Servers with a sidecar each, of which the first so many hold a slot, in a pool that trusts every key.
struct Pool {
    plan: Plan,
    sidecars: Vec<Sidecar>,
    _apps: Vec<App>,
}

impl Pool {
    async fn new(names: &[&str], holding: usize) -> Self {
        let messages = Messages { allow_unverified: true };
        Self::with(names, holding, Settings { messages, ..Settings::default() }).await
    }

    async fn with(names: &[&str], holding: usize, settings: Settings) -> Self {
        let book = Guestbook::default();
        let (mut sidecars, mut apps) = (Vec::new(), Vec::new());
        for name in names {
            let app = App::start(name, &book).await;
            let sidecar = Sidecar::named(name).with_file("--peer-keys", "peers", "secret-between-sidecars");
            sidecars.push(sidecar.upstream(app.address).with_api().start().await);
            apps.push(app);
        }
        let mut pool = Self { plan: Plan::with(settings), sidecars, _apps: apps };
        pool.give(&(0..holding).collect::<Vec<_>>()).await;
        pool
    }

    /// Gives slots to sidecars, by their numbers.
    async fn give(&mut self, slots: &[usize]) {
        let holders: Vec<_> = slots.iter().map(|id| (u32::try_from(*id).expect("few"), &self.sidecars[*id])).collect();
        self.plan.hold(&holders);
        let spares: Vec<_> = (0..self.sidecars.len()).filter(|id| !slots.contains(id)).collect();
        self.plan.others(&spares.iter().map(|id| &self.sidecars[*id]).collect::<Vec<_>>());
        self.plan.publish(&self.all()).await;
    }

    fn all(&self) -> Vec<&Sidecar> {
        self.sidecars.iter().collect()
    }

    fn entries(&self) -> Vec<SocketAddr> {
        self.sidecars.iter().map(|sidecar| sidecar.listen).collect()
    }

    /// So many clients with a key of their own each, which come in at any server.
    async fn users(&self, count: usize) -> Crowd {
        let mut crowd = Crowd::default();
        crowd.join_users(count, &self.entries()).await;
        crowd
    }

    /// What all sidecars take up, in bytes.
    fn memory(&mut self) -> u64 {
        self.sidecars.iter_mut().map(|sidecar| sidecar.process().memory()).sum()
    }

    async fn metric(&self, series: &str) -> u64 {
        let mut sum = 0;
        for sidecar in &self.sidecars {
            sum += sidecar.metric(series).await;
        }
        sum
    }
}

/// Panics unless this happened to a message, and nothing else.
fn happened(answer: &Answer, written: u64, held: u64) {
    let said: Value = answer.json().expect("an answer");
    assert_eq!(said, serde_json::json!({"written": written, "held": held}));
}
