//! A key is never on two servers, whatever its clients do while it moves.
//!
//! The apps write one guestbook in one thread. A key that enters an app before another app's disconnect handler has run
//! is found there.

use std::collections::BTreeSet;

use harness::{App, Crowd, Guestbook, Plan, Sidecar, until};
use ring::settings::{Settings, Unit};

/// Devices of each key when a move begins.
const DEVICES: usize = 5;

struct Scene {
    book: Guestbook,
    sidecars: Vec<Sidecar>,
    router: Sidecar,
    plan: Plan,
    crowd: Crowd,
    _apps: Vec<App>,
}

impl Scene {
    /// Servers of these names, of which the first holds the only slot, and a router.
    async fn new(names: &[&str], settings: Settings) -> Self {
        let book = Guestbook::default();
        let (mut apps, mut sidecars) = (Vec::new(), Vec::new());
        for name in names {
            let app = App::start(name, &book).await;
            sidecars.push(Sidecar::named(name).upstream(app.address).start().await);
            apps.push(app);
        }
        let router = Sidecar::router().await;
        let plan = Plan::with(settings);
        let mut scene = Self { book, sidecars, router, plan, crowd: Crowd::default(), _apps: apps };
        scene.place(1).await;
        scene
    }

    /// The first so many servers hold slots from now on.
    async fn place(&mut self, count: usize) {
        self.plan.others(&[&self.router]);
        let slots: Vec<_> = (0..).zip(&self.sidecars[..count]).collect();
        self.plan.hold(&slots);
        self.publish().await;
    }

    async fn publish(&self) {
        let mut all: Vec<_> = self.sidecars.iter().collect();
        all.push(&self.router);
        self.plan.publish(&all).await;
    }

    /// So many devices of each key enter at random places.
    fn join(&mut self, keys: &[String], devices: usize) {
        let entries: Vec<_> = self.sidecars.iter().chain([&self.router]).map(|sidecar| sidecar.listen).collect();
        for key in keys {
            for _ in 0..devices {
                self.crowd.join(key, &entries);
            }
        }
    }

    /// Lets some evictions happen, then returns in the middle of the move.
    async fn begin_to_move(&self, count: u64) {
        until("the move is under way", async || {
            let mut evicted = 0;
            for sidecar in &self.sidecars {
                let spent = sidecar.status().await.evicted;
                evicted += sidecar.grant(&self.plan.grant(sidecar, spent + count)).await.evicted;
            }
            if evicted >= count { Ok(()) } else { Err(format!("{evicted} are evicted")) }
        })
        .await;
    }

    async fn finish(&mut self) {
        let sources: Vec<_> = self.sidecars.iter().collect();
        self.plan.move_all(&sources, 50).await;
        self.crowd.at_home(|key| self.plan.owner(key)).await;
        self.plan.settle();
        self.publish().await;
    }

    fn never_on_two_servers(&self) {
        let found = self.book.on_two_servers();
        assert!(found.is_empty(), "{} keys were on two servers: {found:#?}", found.len());
    }
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

#[tokio::test]
async fn five_devices_of_each_key_come_back_at_once_and_never_meet_on_two_servers() {
    let mut scene = Scene::new(&["a", "b"], Settings::default()).await;
    let keys = keys(30);
    scene.join(&keys, DEVICES);
    scene.crowd.settled().await;
    scene.place(2).await;
    scene.finish().await;
    scene.never_on_two_servers();
    for life in scene.crowd.lives() {
        let moved = scene.plan.owner(&life.key) == "b";
        assert_eq!(life.breaks(), usize::from(moved), "needless, or more than once: {life:?}");
    }
}

#[tokio::test]
async fn a_device_that_joins_in_mid_move_never_meets_the_others_on_two_servers() {
    let mut scene = Scene::new(&["a", "b"], Settings::default()).await;
    let keys = keys(30);
    scene.join(&keys, DEVICES);
    scene.crowd.settled().await;
    scene.place(2).await;
    // More devices come all the while: of keys that wait, that are leaving, and that have gone.
    for round in 1..=4 {
        scene.begin_to_move(10 * round).await;
        scene.join(&keys, 1);
    }
    scene.finish().await;
    scene.never_on_two_servers();
    for life in scene.crowd.lives().iter().filter(|life| scene.plan.owner(&life.key) == "a") {
        assert_eq!(life.breaks(), 0, "needless: {life:?}");
    }
}

#[tokio::test]
async fn placements_in_quick_succession_never_put_a_key_on_two_servers() {
    let mut scene = Scene::new(&["a", "b", "c"], Settings::default()).await;
    let keys = keys(30);
    scene.join(&keys, 3);
    scene.crowd.settled().await;
    // One slot, two, three, two again: some keys belong to b for a moment, and are held under any of the tables.
    for count in [2, 3, 2, 3] {
        scene.place(count).await;
        scene.begin_to_move(8).await;
        scene.join(&keys[..10], 1);
    }
    scene.finish().await;
    scene.never_on_two_servers();
    let stayed: BTreeSet<_> = keys.iter().filter(|key| scene.plan.owner(key) == "a").collect();
    for life in scene.crowd.lives().iter().filter(|life| stayed.contains(&life.key)) {
        assert_eq!(life.breaks(), 0, "needless: {life:?}");
    }
}

#[tokio::test]
async fn an_entry_that_has_not_heard_of_a_placement_breaks_no_promise() {
    let mut scene = Scene::new(&["a", "b"], Settings::default()).await;
    let keys = keys(30);
    scene.join(&keys, 3);
    scene.crowd.settled().await;
    // The router hears of nothing until the end.
    scene.plan.hold(&[(0, &scene.sidecars[0]), (1, &scene.sidecars[1])]);
    scene.plan.publish(&[&scene.sidecars[1], &scene.sidecars[0]]).await;
    for key in &keys {
        scene.crowd.join(key, &[scene.router.listen]);
    }
    scene.finish().await;
    scene.never_on_two_servers();
}

#[tokio::test]
async fn the_guestbook_finds_a_key_that_is_allowed_on_two_servers() {
    let settings = Settings { unit: Unit::Connection, ..Settings::default() };
    let mut scene = Scene::new(&["a", "b"], settings).await;
    scene.join(&keys(10), DEVICES);
    scene.crowd.settled().await;
    scene.place(2).await;
    scene.finish().await;
    assert!(!scene.book.on_two_servers().is_empty(), "connections of a key move one by one there");
}
