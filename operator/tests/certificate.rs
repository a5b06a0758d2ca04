//! Certificates over the years, without waiting for them.

use std::time::{Duration, SystemTime};

use operator::certificate::{Certificate, LIFETIME, RENEWAL};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = DAY.saturating_mul(365);

fn names() -> Vec<String> {
    vec!["wspool-webhook.wspool.svc".to_owned()]
}

fn made(now: SystemTime) -> Certificate {
    Certificate::renew(None, &names(), now).expect("it can be made")
}

#[test]
fn a_new_certificate_is_accepted_by_its_names_only() {
    let now = SystemTime::now();
    let certificate = made(now);
    certificate.check(&names(), now).expect("it is fit");
    certificate.check(&["other.wspool.svc".to_owned()], now).expect_err("it is not for this name");
    assert!(certificate.needs_renewal(&["other.wspool.svc".to_owned()], now));
}

#[test]
fn a_certificate_is_renewed_well_before_it_ends() {
    let now = SystemTime::now();
    let certificate = made(now);
    let end = now + LIFETIME;
    assert!(!certificate.needs_renewal(&names(), now));
    assert!(!certificate.needs_renewal(&names(), end - RENEWAL - DAY));
    assert!(certificate.needs_renewal(&names(), end - RENEWAL + DAY));
    certificate.check(&names(), end - DAY).expect("it still serves");
    certificate.check(&names(), end + DAY).expect_err("it has ended");
}

#[test]
fn clocks_may_differ_by_minutes() {
    let now = SystemTime::now();
    made(now).check(&names(), now - Duration::from_secs(300)).expect("it is valid already");
}

#[test]
fn a_renewal_changes_nothing_that_clients_trust() {
    let now = SystemTime::now();
    let first = made(now);
    let second = Certificate::renew(Some(&first), &names(), now + LIFETIME - RENEWAL).expect("it can be renewed");
    assert!(first != second);
    assert_eq!(first.authorities(), second.authorities());
    second.check(&names(), now + LIFETIME + DAY).expect("it outlasts the first");
}

#[test]
fn while_the_authority_is_renewed_both_are_trusted() {
    let now = SystemTime::now();
    let old = made(now);
    let late = now + 9 * YEAR + DAY;
    let before = Certificate::renew(Some(&old), &names(), late - 2 * DAY).expect("it can be renewed");
    assert!(before.needs_renewal(&names(), late), "its authority ends within a year");
    let after = Certificate::renew(Some(&before), &names(), late).expect("it can be renewed");
    assert!(after.authorities().ends_with(before.authorities()));
    assert_eq!(after.authorities().matches("BEGIN CERTIFICATE").count(), 2);
    after.check(&names(), late + DAY).expect("it is fit");

    // A replica that still serves with the old one is trusted by whoever trusts the new bundle.
    let mut data = before.to_data();
    data.insert("ca.crt".into(), after.to_data()["ca.crt"].clone());
    Certificate::from_data(&data).expect("it is whole").check(&names(), late + DAY).expect("it is trusted");

    let next = Certificate::renew(Some(&after), &names(), late + LIFETIME).expect("it can be renewed");
    assert_eq!(next.authorities(), after.authorities());
}

#[test]
fn a_secret_brings_back_the_same_certificate() {
    let certificate = made(SystemTime::now());
    let mut data = certificate.to_data();
    assert!(Certificate::from_data(&data) == Some(certificate));
    data.remove("tls.key");
    assert!(Certificate::from_data(&data).is_none());
}

#[test]
fn a_secret_that_was_meddled_with_is_replaced() {
    let now = SystemTime::now();
    let (one, other) = (made(now), made(now));
    for part in ["ca.crt", "ca.key", "tls.crt", "tls.key"] {
        for value in [b"no PEM".to_vec(), Vec::new(), other.to_data()[part].0.clone()] {
            let mut data = one.to_data();
            data.insert(part.to_owned(), k8s_openapi::ByteString(value));
            let meddled = Certificate::from_data(&data).expect("it is whole");
            // Its authority's key is looked at when it is used.
            assert!(part == "ca.key" || meddled.needs_renewal(&names(), now), "{part}");
            let renewed = Certificate::renew(Some(&meddled), &names(), now).expect("it can be renewed");
            renewed.check(&names(), now).expect("it is fit");
            assert!(!renewed.needs_renewal(&names(), now), "{part}");
        }
    }
}
