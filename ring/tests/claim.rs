//! What one server answers, case by case. That the answers fit together is checked in `claim_model.rs`.

use ring::Version;
use ring::claim::{Arrival, ClaimAnswer, End, Entry, KeyState, Released, Standing};
use ring::wire::Peer;

type Key = KeyState<&'static str>;

fn version(epoch: u64) -> Version {
    Version { term: 1, epoch }
}

/// What "me" thinks of a key under a version.
fn standing(epoch: u64, owner: &'static str, previous: &[&'static str]) -> Standing<&'static str> {
    Standing { version: version(epoch), owner: Some(owner), mine: owner == "me", previous: previous.to_vec() }
}

fn admit(key: &mut Key, standing: &Standing<&'static str>) {
    assert_eq!(key.enter(standing, Arrival::Owner, None), Entry::Admit);
}

/// A key that has moved away with its only connection, which is leaving.
fn leaving() -> Key {
    let mut key = Key::default();
    admit(&mut key, &standing(1, "me", &[]));
    key.leave();
    key
}

#[test]
fn an_owner_that_follows_nobody_admits_at_once() {
    let mut key = Key::default();
    admit(&mut key, &standing(1, "me", &[]));
    assert_eq!((key.connections(), key.staying()), (1, 1));
}

#[test]
fn an_owner_asks_all_previous_owners_and_enters_with_their_proof() {
    let mut key = Key::default();
    let now = standing(3, "me", &["b", "a"]);
    assert_eq!(key.enter(&now, Arrival::Owner, None), Entry::Claim(vec!["b", "a"]));
    assert_eq!(key.enter(&now, Arrival::Owner, Some(&Released(version(3)))), Entry::Admit);
}

#[test]
fn proof_of_another_version_proves_nothing() {
    let now = standing(3, "me", &["b"]);
    for other in [2, 4] {
        let entry = Key::default().enter(&now, Arrival::Owner, Some(&Released(version(other))));
        assert_eq!(entry, Entry::Claim(vec!["b"]));
    }
}

#[test]
fn a_handshake_for_another_owner_is_redirected_and_joins_only_a_key_that_is_still_here() {
    let (before, now) = (standing(1, "me", &[]), standing(2, "b", &["me"]));
    assert_eq!(Key::default().enter(&now, Arrival::Owner, None), Entry::Redirect("b"));

    let mut held = Key::default();
    admit(&mut held, &before);
    assert_eq!(held.enter(&now, Arrival::Owner, None), Entry::Admit);
    assert_eq!(leaving().enter(&now, Arrival::Owner, None), Entry::Redirect("b"));
}

#[test]
fn a_handshake_is_told_when_nobody_owns_its_key() {
    let nobody = Standing { version: version(2), owner: None, mine: false, previous: vec![] };
    assert_eq!(Key::default().enter(&nobody, Arrival::Owner, None), Entry::Nobody);
}

#[test]
fn a_fallback_is_admitted_unless_the_key_was_promised_under_a_newer_version() {
    let (old, mut key) = (standing(1, "a", &[]), Key::default());
    assert_eq!(key.enter(&old, Arrival::Fallback, None), Entry::Admit);
    key.close(End::Other);
    key.claim(&old, version(2), &"b");
    assert_eq!(key.enter(&old, Arrival::Fallback, None), Entry::Redirect("b"));
}

#[test]
fn a_key_that_comes_back_while_it_is_leaving_needs_no_claim() {
    let mut key = leaving();
    admit(&mut key, &standing(3, "me", &["b"]));
    assert_eq!((key.connections(), key.staying()), (2, 1));
}

#[test]
fn an_eviction_called_off_leaves_the_key_held() {
    let mut key = leaving();
    key.stay();
    assert_eq!(key.staying(), 1);
    assert_eq!(key.claim(&standing(1, "me", &[]), version(2), &"b"), ClaimAnswer::Held);
}

#[test]
fn a_claim_hears_held_then_leaving_then_released_with_the_number_evicted() {
    let (before, now) = (standing(1, "me", &[]), standing(2, "b", &["me"]));
    let mut key = Key::default();
    admit(&mut key, &before);
    admit(&mut key, &before);
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Held);
    key.leave();
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Held);
    key.leave();
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Leaving);
    key.close(End::Evicted);
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Leaving);
    key.close(End::Evicted);
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Released { away: 2, receivers: None });
    assert_eq!(
        key.claim(&now, version(2), &"b"),
        ClaimAnswer::Released { away: 0, receivers: None },
        "each is counted once"
    );
}

#[test]
fn a_pinned_key_is_held_also_without_connections_until_it_is_unpinned() {
    let (before, now) = (standing(1, "me", &[]), standing(2, "b", &["me"]));
    let mut key = Key::default();
    assert!(!key.pin(), "it may be elsewhere");
    admit(&mut key, &before);
    assert!(key.pin());
    key.close(End::Other);
    assert!(key.settle(version(2), true), "it is pinned");
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Held);
    admit(&mut key, &now);
    key.close(End::Other);
    key.unpin();
    assert_eq!(key.claim(&now, version(2), &"b"), ClaimAnswer::Released { away: 0, receivers: None });
}

#[test]
fn a_connection_that_ends_by_itself_is_not_waited_for_elsewhere() {
    let mut key = Key::default();
    admit(&mut key, &standing(1, "me", &[]));
    key.close(End::Other);
    assert_eq!(
        key.claim(&standing(2, "b", &["me"]), version(2), &"b"),
        ClaimAnswer::Released { away: 0, receivers: None }
    );
}

#[test]
fn a_promised_key_is_redirected_until_the_placement_that_moved_it_is_known() {
    let old = standing(1, "me", &[]);
    let mut key = Key::default();
    assert_eq!(key.claim(&old, version(2), &"b"), ClaimAnswer::Released { away: 0, receivers: None });
    assert_eq!(key.enter(&old, Arrival::Owner, None), Entry::Redirect("b"));
    assert!(key.settle(version(1), false), "a promise outlives an older placement");
    assert_eq!(key.enter(&old, Arrival::Owner, None), Entry::Redirect("b"));
    assert!(!key.settle(version(2), true), "the placement says it from now on");
    admit(&mut key, &standing(3, "me", &[]));
}

#[test]
fn a_late_claim_is_sent_on_to_the_owner_of_a_newer_placement() {
    let mut key = Key::default();
    let superseded = ClaimAnswer::Superseded { owner: "c" };
    assert_eq!(key.claim(&standing(3, "c", &["b", "me"]), version(2), &"b"), superseded);
    let superseded = ClaimAnswer::Superseded { owner: "me" };
    assert_eq!(key.claim(&standing(3, "me", &["b"]), version(2), &"b"), superseded);
}

#[test]
fn a_late_claim_is_sent_on_to_whom_the_key_was_promised_since_and_takes_nothing_back() {
    let (old, mut key) = (standing(1, "me", &[]), Key::default());
    assert_eq!(key.claim(&old, version(2), &"b"), ClaimAnswer::Released { away: 0, receivers: None });
    assert_eq!(key.claim(&old, version(3), &"c"), ClaimAnswer::Released { away: 0, receivers: None });
    assert_eq!(key.claim(&old, version(2), &"b"), ClaimAnswer::Superseded { owner: "c" });
    assert_eq!(key.enter(&old, Arrival::Owner, None), Entry::Redirect("c"));
}

#[test]
fn a_repeated_older_claim_of_the_same_owner_does_not_weaken_its_promise() {
    let mut key = Key::default();
    key.claim(&standing(1, "me", &[]), version(4), &"b");
    assert_eq!(
        key.claim(&standing(1, "me", &[]), version(2), &"b"),
        ClaimAnswer::Released { away: 0, receivers: None }
    );
    assert_eq!(key.enter(&standing(3, "me", &[]), Arrival::Owner, None), Entry::Redirect("b"));
}

#[test]
fn a_key_is_forgotten_when_nothing_is_held_promised_or_awaited() {
    let mut key = leaving();
    assert!(key.settle(version(2), true), "a connection is leaving");
    key.close(End::Evicted);
    assert!(key.settle(version(2), true), "its return is awaited");
    assert!(!key.settle(version(3), false), "the move is over");
}

#[test]
fn answers_read_and_write_as_json() {
    let owner = Peer { uid: "u1".into(), address: "10.0.0.1:7480".into() };
    for (answer, json) in [
        (ClaimAnswer::Held, r#"{"answer":"held"}"#),
        (ClaimAnswer::Leaving, r#"{"answer":"leaving"}"#),
        (ClaimAnswer::Released { away: 5, receivers: None }, r#"{"answer":"released","away":5}"#),
        (ClaimAnswer::Released { away: 5, receivers: Some(3) }, r#"{"answer":"released","away":5,"receivers":3}"#),
        (
            ClaimAnswer::Superseded { owner },
            r#"{"answer":"superseded","owner":{"uid":"u1","address":"10.0.0.1:7480"}}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&answer).expect("it writes"), json);
        assert_eq!(serde_json::from_str::<ClaimAnswer<Peer>>(json).expect("it reads"), answer);
    }
}
