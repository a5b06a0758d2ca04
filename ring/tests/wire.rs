//! The JSON between operator and sidecars, as both of them must go on reading it.

use std::collections::BTreeMap;

use ring::claim::ClaimAnswer;
use ring::wire::{
    AppHealth, BreakCause, Claim, ClaimReply, CutOver, Draining, Grant, Load, Loads, Peer, Placed, Problem,
    RedisHealth, Report, Returning, Returns, Told,
};
use ring::{Placement, SlotId, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const VERSION: Version = Version { term: 2, epoch: 7 };

fn reads_and_writes<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, json: &Value) {
    assert_eq!(&serde_json::to_value(value).expect("it writes"), json);
    assert_eq!(&serde_json::from_str::<T>(&json.to_string()).expect("it reads"), value);
}

#[test]
fn a_grant_keeps_its_shape() {
    let grant = Grant { target: "u".into(), version: VERSION, allow_total: 12, ttl_ms: 1000, to: vec![SlotId(3)] };
    reads_and_writes(
        &grant,
        &json!({"target": "u", "term": 2, "epoch": 7, "allowTotal": 12, "ttlMs": 1000, "to": [3]}),
    );
}

#[test]
fn loads_keep_their_shape() {
    let slots = BTreeMap::from([(SlotId(3), Load { connections: 1_000, age_ms: 40 })]);
    let told = Told { target: "u".to_owned(), loads: Loads { version: VERSION, slots } };
    let slots = json!({"3": {"connections": 1000, "ageMs": 40}});
    reads_and_writes(&told, &json!({"target": "u", "loads": {"term": 2, "epoch": 7, "slots": slots}}));
}

#[test]
fn a_claim_keeps_its_shape() {
    let claimant = Peer { uid: "u".into(), address: "a:1".into() };
    let (version, pool_uid) = (VERSION, "p".into());
    let claim = Claim { key: "k".into(), version, pool_uid, claimant, wait_ms: 5, hears: false };
    let claimant = json!({"uid": "u", "address": "a:1"});
    let mut json = json!({"key": "k", "term": 2, "epoch": 7, "poolUid": "p", "claimant": claimant, "waitMs": 5});
    reads_and_writes(&claim, &json);
    json["hears"] = true.into();
    reads_and_writes(&Claim { hears: true, ..claim }, &json);
    let reply = ClaimReply { answer: ClaimAnswer::Released { away: 2, receivers: Some(1) }, marker: Some("m".into()) };
    reads_and_writes(&reply, &json!({"answer": "released", "away": 2, "receivers": 1, "marker": "m"}));
    reads_and_writes(&ClaimReply { marker: None, ..reply }, &json!({"answer": "released", "away": 2, "receivers": 1}));
    let cut_over = CutOver { pool_uid: "p".into(), key: "k".into(), marker: "m".into() };
    reads_and_writes(&cut_over, &json!({"poolUid": "p", "key": "k", "marker": "m"}));
}

#[test]
fn a_draining_sidecar_says_so_in_the_same_shape() {
    let draining = Draining { pool_uid: "p".into(), uid: "u".into(), draining: true, gone: false };
    reads_and_writes(&draining, &json!({"poolUid": "p", "uid": "u", "draining": true}));
    let gone = json!({"poolUid": "p", "uid": "u", "draining": true, "gone": true});
    reads_and_writes(&Draining { gone: true, ..draining }, &gone);
}

#[test]
fn what_is_known_of_connections_on_their_way_keeps_its_shape() {
    let returning = |marker| Returning { key: "k".into(), away: 2, receivers: 1, marker };
    let returns = Returns { pool_uid: "p".into(), keys: vec![returning(None), returning(Some("m".into()))] };
    let keys = json!([{"key": "k", "away": 2, "receivers": 1}, {"key": "k", "away": 2, "receivers": 1, "marker": "m"}]);
    reads_and_writes(&returns, &json!({"poolUid": "p", "keys": keys}));
}

#[test]
fn a_report_keeps_its_shape() {
    let report = Report {
        uid: "u".into(),
        started: 1,
        pool_uid: "p".into(),
        version: VERSION,
        slot: Some(SlotId(3)),
        draining: true,
        retired: true,
        drain_seconds_left: Some(30),
        connections: 10,
        trusted: 8,
        transit: 2,
        moved_keys: 3,
        moved: 4,
        moved_to: BTreeMap::from([(SlotId(5), 4)]),
        moved_pinned: 5,
        pinned_keys: 3,
        pinned: 11,
        pod_pinned_until: 12,
        evicted: 6,
        in_flight: 1,
        returned: 7,
        breaks: BreakCause::ALL.into_iter().zip(1..).collect(),
        held_messages: 9,
        held_bytes: 900,
        redis: Some(RedisHealth::Down("it does not answer".into())),
        app: AppHealth { accepted: 1, failed: 2, handshake_ms: 3, queued: 4 },
    };
    let json = json!({
        "uid": "u",
        "started": 1,
        "poolUid": "p",
        "term": 2,
        "epoch": 7,
        "slot": 3,
        "draining": true,
        "retired": true,
        "drainSecondsLeft": 30,
        "connections": 10,
        "trusted": 8,
        "transit": 2,
        "movedKeys": 3,
        "moved": 4,
        "movedTo": {"5": 4},
        "movedPinned": 5,
        "pinnedKeys": 3,
        "pinned": 11,
        "podPinnedUntil": 12,
        "evicted": 6,
        "inFlight": 1,
        "returned": 7,
        "breaks": {"move": 1, "drain": 2, "entryLost": 3, "limit": 4},
        "heldMessages": 9,
        "heldBytes": 900,
        "redis": {"down": "it does not answer"},
        "app": {"accepted": 1, "failed": 2, "handshakeMs": 3, "queued": 4},
    });
    reads_and_writes(&report, &json);
}

#[test]
fn a_cause_is_named_in_metrics_as_in_json() {
    for cause in BreakCause::ALL {
        assert_eq!(serde_json::to_value(cause).expect("it writes"), cause.name());
    }
}

#[test]
fn a_placed_placement_is_not_mixed_with_its_target() {
    let placement = Placement { pool_uid: "p".into(), version: VERSION, ..Placement::default() };
    let placed = Placed { target: "u".into(), placement: placement.clone() };
    let placement = serde_json::to_value(placement).expect("it writes");
    reads_and_writes(&placed, &json!({"target": "u", "placement": placement}));
}

#[test]
fn a_problem_is_as_rfc_9457_writes_it() {
    let problem = Problem { status: 409, title: "stale".into(), detail: "term 1 is older than 2".into() };
    reads_and_writes(&problem, &json!({"status": 409, "title": "stale", "detail": "term 1 is older than 2"}));
}
