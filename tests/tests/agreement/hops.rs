//! What agreement saves: connections through a real nginx, with and without.

use std::fmt::Write as _;

use harness::{App, Client, Guestbook, Plan, Sidecar, ports};
use ring::KeyHasher;
use ring::agreement::Agreement;

use crate::nginx::Nginx;

const CLIENTS: u32 = 300;

#[tokio::test]
async fn connections_that_nginx_sends_to_their_owners_are_not_handed_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let book = Guestbook::default();
    let mut apps = Vec::new();
    let mut sidecars = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let app = App::start(name, &book).await;
        sidecars.push(Sidecar::named(name).upstream(app.address).start().await);
        apps.push(app);
    }
    let all: Vec<&Sidecar> = sidecars.iter().collect();
    let entry = ports::free();
    let mut config = String::from("upstream pool { hash $arg_user consistent;\n");
    for sidecar in &all {
        writeln!(config, "server {};", sidecar.listen).expect("memory");
    }
    write!(
        config,
        "}}\nserver {{ listen {entry}; location / {{ proxy_pass http://pool; proxy_http_version 1.1; \
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} }}"
    )
    .expect("memory");
    let _nginx = Nginx::start(&folder, "nginx", &config, entry).await;

    let slots: Vec<(u32, &Sidecar)> = (0..).zip(all.iter().copied()).collect();
    let mut shares = Vec::new();
    for hasher in [KeyHasher::Xxh64, KeyHasher::Agreed(Agreement::NginxKetama)] {
        let mut plan = Plan::new();
        plan.placement.version.epoch = shares.len() as u64;
        plan.hold(&slots);
        plan.placement.table.hasher = hasher.clone();
        plan.publish(&all).await;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let key = format!("user-{}-{number}", shares.len());
            let client = Client::connect(entry, &key).await;
            assert_eq!(client.server, plan.owner(&key), "{key}");
            clients.push(client);
        }
        let mut handed_on = 0;
        for sidecar in &all {
            handed_on += sidecar.status().await.transit;
        }
        println!("{hasher:?}: {handed_on} of {CLIENTS} connections were handed on");
        shares.push(handed_on);
        for client in clients {
            drop(client);
        }
        for sidecar in &all {
            harness::until("nothing is held any more", async || {
                let report = sidecar.status().await;
                harness::wait::equal(&(report.connections, report.transit), &(0, 0))
            })
            .await;
        }
    }
    // Of four servers three are wrong: 225, give or take four standard deviations.
    assert!((195..=255).contains(&shares[0]), "{shares:?}");
    assert_eq!(shares[1], 0);
}
