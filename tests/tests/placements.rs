//! Which placements a sidecar takes, from whom, and how long it keeps them.

use std::sync::Arc;

use harness::http::Answer;
use harness::wait::equal;
use harness::{App, Client, Guestbook, Plan, Sidecar, until};
use ring::settings::KeySource;
use ring::wire::{Placed, Problem};
use ring::{Placement, Version};

/// A sidecar that holds the only slot of its pool, at epoch 1.
async fn placed() -> (Sidecar, App, Plan) {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let sidecar = Sidecar::beside(app.address).await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    (sidecar, app, plan)
}

/// Reads a problem off an answer.
fn problem(answer: &Answer) -> Problem {
    assert_eq!(answer.header("content-type"), Problem::CONTENT_TYPE);
    let problem: Problem = serde_json::from_slice(&answer.body).expect("a problem");
    assert_eq!(problem.status, answer.status.as_u16());
    problem
}

async fn offered(sidecar: &Sidecar, result: &str) -> u64 {
    sidecar.metric(&format!("wspool_placements_total{{result=\"{result}\"}}")).await
}

#[tokio::test]
async fn a_placement_that_cannot_be_used_is_refused_with_a_sentence_and_changes_nothing() {
    let (sidecar, _app, mut plan) = placed().await;
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    let mut bystander = Client::connect(sidecar.listen, "ann").await;
    let right = plan.placement.clone();
    let next = || Placement { version: Version { term: 1, epoch: 9 }, ..right.clone() };

    let older = Placement { version: Version { term: 1, epoch: 1 }, predecessors: Vec::new(), ..right.clone() };
    let conflicting = Placement { pool: "renamed".into(), ..right.clone() };
    let other_pool = Placement { pool_uid: "pool-2".into(), ..next() };
    let no_pool = Placement { pool_uid: String::new(), ..next() };
    let mut two_slots = next();
    two_slots.table.slots.push(two_slots.table.slots[0].clone());
    let mut bad_address = next();
    let holder = bad_address.table.slots[0].holder.as_mut().expect("a holder");
    Arc::make_mut(holder).address = "somewhere".into();
    let mut bad_key = next();
    bad_key.settings.key.from = vec![KeySource::Path("/rooms".into())];
    let cases = [
        (older, 409, "older", "Older", "term 1 epoch 2"),
        (conflicting, 409, "conflicting", "Conflicting", "epoch"),
        (other_pool, 409, "other-pool", "OtherPool", "pool-2"),
        (no_pool, 400, "malformed", "Malformed", "poolUid"),
        (two_slots, 400, "malformed", "Malformed", "slot 0"),
        (bad_address, 400, "malformed", "Malformed", "somewhere"),
        (bad_key, 400, "malformed", "Malformed", "/rooms"),
    ];
    for (placement, status, title, result, said) in cases {
        let before = offered(&sidecar, result).await;
        let answer = sidecar.put_json("/v1/placement", &Placed { target: sidecar.name.clone(), placement }).await;
        let problem = problem(&answer);
        assert_eq!((problem.status, problem.title.as_str()), (status, title), "{problem:?}");
        assert!(problem.detail.contains(said), "{problem:?} does not say {said:?}");
        assert_eq!(offered(&sidecar, result).await, before + 1, "{title} is not counted");
    }

    let other = Placed { target: "another".into(), placement: next() };
    let refused = problem(&sidecar.put_json("/v1/placement", &other).await);
    assert_eq!((refused.status, refused.title.as_str()), (421, "other-target"));
    assert!(refused.detail.contains("another") && refused.detail.contains(&sidecar.name), "{refused:?}");
    assert_eq!(offered(&sidecar, "OtherTarget").await, 1);
    for nonsense in ["", "{", "[]", "{\"target\": 7}", "{\"target\": \"sidecar\", \"placement\": {\"pool\": \"x\"}}"] {
        let refused = problem(&sidecar.put("/v1/placement", nonsense).await);
        assert_eq!((refused.status, refused.title.as_str()), (400, "malformed"), "{nonsense:?}");
    }

    let report = sidecar.status().await;
    assert_eq!((report.version, report.pool_uid.as_str()), (right.version, "pool-1"));
    bystander.check().await;
}

#[tokio::test]
async fn the_same_placement_again_is_fine_and_a_newer_term_wins() {
    let (sidecar, _app, mut plan) = placed().await;
    plan.publish(&[&sidecar]).await;
    assert_eq!(offered(&sidecar, "Known").await, 1);
    plan.placement.version = Version { term: 2, epoch: 1 };
    plan.publish(&[&sidecar]).await;
    plan.placement.version = Version { term: 1, epoch: 99 };
    let old_leader = Placed { target: sidecar.name.clone(), placement: plan.placement };
    assert_eq!(problem(&sidecar.put_json("/v1/placement", &old_leader).await).title, "older");
    assert_eq!(sidecar.status().await.version, Version { term: 2, epoch: 1 });
}

#[tokio::test]
async fn a_grant_for_another_placement_or_another_sidecar_is_refused() {
    let (sidecar, _app, plan) = placed().await;
    let mut other = plan.grant(&sidecar, 10);
    other.version.epoch += 1;
    let refused = problem(&sidecar.put_json("/v1/evictions", &other).await);
    assert_eq!((refused.status, refused.title.as_str()), (409, "other-version"), "{refused:?}");
    assert_eq!(sidecar.metric("wspool_grants_refused_total").await, 1);
    let other = ring::wire::Grant { target: "another".into(), ..plan.grant(&sidecar, 10) };
    assert_eq!(problem(&sidecar.put_json("/v1/evictions", &other).await).status, 421);
    assert_eq!(problem(&sidecar.put("/v1/evictions", "{}").await).status, 400);
}

#[tokio::test]
async fn a_restarted_sidecar_still_knows_its_placement() {
    let (mut sidecar, _app, plan) = placed().await;
    sidecar.kill();
    sidecar.start_again().await;
    let report = sidecar.status().await;
    assert_eq!(report.version, plan.placement.version);
    assert_eq!(report.slot.map(|slot| slot.0), Some(0));
    Client::connect(sidecar.listen, "ann").await.check().await;
}

#[tokio::test]
async fn a_placement_file_is_followed_and_only_a_newer_one_changes_anything() {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let start = Sidecar::named("sidecar").upstream(app.address);
    let file = start.path("placement.json");
    let sidecar = start.with("--placement", &file.to_string_lossy()).start().await;
    assert_eq!(sidecar.status().await.version, Version::default(), "the file is not there yet");

    // As the kubelet does: the new content appears at once.
    let write = |text: String| {
        let draft = file.with_extension("draft");
        std::fs::write(&draft, text).expect("a file");
        std::fs::rename(draft, &file).expect("a file in its place");
    };
    let json = |plan: &Plan| serde_json::to_string(&plan.placement).expect("JSON");
    let version_is = async |version: Version| {
        until("the placement is in force", async || equal(&sidecar.status().await.version, &version)).await;
    };
    let mut plan = Plan::new();
    plan.hold(&[(0, &sidecar)]);
    let first = plan.clone();
    write(json(&plan));
    version_is(first.placement.version).await;

    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    write(json(&first) + "\n");
    until("the older file was looked at", async || equal(&offered(&sidecar, "Older").await, &1)).await;
    write("not a placement".into());
    until("the malformed file was looked at", async || equal(&offered(&sidecar, "Malformed").await, &1)).await;
    std::fs::remove_file(&file).expect("the file");
    version_is(plan.placement.version).await;

    plan.hold(&[(0, &sidecar)]);
    write(json(&plan));
    version_is(plan.placement.version).await;
    Client::connect(sidecar.listen, "ann").await.check().await;
}
