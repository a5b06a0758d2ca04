//! A whole pool without Kubernetes.

use std::collections::BTreeMap;

use crate::operator::Files;
use crate::wait::equal;
use crate::{App, Crowd, Guestbook, Operator, Sidecar, until};

/// Servers, a router, an operator, and clients that enter at the router.
#[derive(Debug)]
pub struct Scene {
    /// Who was at which server when.
    pub book: Guestbook,
    /// The apps, by name.
    pub apps: BTreeMap<String, App>,
    /// Their sidecars, by name.
    pub servers: BTreeMap<String, Sidecar>,
    /// The router.
    pub router: Sidecar,
    /// The operator.
    pub operator: Operator,
    /// The clients.
    pub crowd: Crowd,
}

impl Scene {
    /// Starts servers of these names, and lists them; each gets a slot in this order.
    pub async fn new(files: Files, names: &[&str]) -> Self {
        let (router, operator) = (Sidecar::router().await, Operator::start(files).await);
        let (book, crowd) = (Guestbook::default(), Crowd::default());
        let mut scene = Self { book, apps: BTreeMap::new(), servers: BTreeMap::new(), router, operator, crowd };
        for name in names {
            scene.start(name).await;
        }
        scene.list(names);
        let pool = scene.operator.stable(names.len()).await;
        // Nothing has to move for the first placement, so nobody was waited for.
        until("the router knows the pool", async || {
            equal(&scene.router.status().await.version.epoch.into(), &pool["epoch"])
        })
        .await;
        scene
    }

    /// Starts one more server.
    pub async fn start(&mut self, name: &str) {
        let app = App::start(name, &self.book).await;
        let sidecar = Sidecar::named(name).upstream(app.address).with_api().start().await;
        self.apps.insert(name.into(), app);
        self.servers.insert(name.into(), sidecar);
    }

    /// Says which servers belong to the pool.
    pub fn list(&self, names: &[&str]) {
        let members: Vec<_> = names.iter().map(|name| &self.servers[*name]).collect();
        self.operator.files().list(&members, &[&self.router]);
    }
}
