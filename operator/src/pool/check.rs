//! From a parsed pool to one that can be worked with: every fault at once, each naming its field, its value, and what
//! would be right.

use std::fmt;
use std::time::Duration;

use ring::KeyHasher;
use ring::duration::GoDuration;
use ring::settings::{self, Settings};

use super::{
    Algorithm, Hashing, KeySource, KeySpec, Mode, PerMinute, Rate, SeedSource, Strategy, Trust, WebSocketPool,
};

/// The longest name: names derived from it must fit into 63 characters.
const MAX_NAME: usize = 50;
/// The most slots.
const MAX_REPLICAS: u32 = 1_000;

/// A pool without faults, as the planner and the rebalancer use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedPool {
    /// Its name.
    pub name: String,
    /// Its UID, when the API server has given it one.
    pub uid: Option<String>,
    /// How many slots are desired; `None` means one for each app member.
    pub replicas: Option<u32>,
    /// How keys are hashed.
    pub hasher: KeyHasher,
    /// What the sidecars are told.
    pub settings: Settings,
    /// How connections are moved.
    pub pace: Pace,
}

/// How connections are moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Whether anything moves.
    pub mode: Mode,
    /// How long membership must stand still.
    pub settle: Duration,
    /// How fast connections may be evicted.
    pub rate: Rate,
    /// The most connections in flight.
    pub max_in_flight: u64,
    /// When an evicted connection counts as lost.
    pub return_timeout: Duration,
    /// Percent of a cohort that must return.
    pub min_returned: u64,
}

/// One thing that is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: `spec.rebalance.rate`.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What would be right.
    pub want: String,
}

/// Everything that is wrong with a pool; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.field, self.value, self.want)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

/// Checks a pool. `seed` is the text that `hashing.seedFrom` leads to, which the caller has read.
pub fn check(pool: &WebSocketPool, seed: Option<&str>) -> Result<CheckedPool, Faults> {
    let mut faults = Checker::default();
    let name = pool.metadata.name.clone().unwrap_or_default();
    let spec = &pool.spec;
    faults.name(&name);
    if let Some(replicas) = spec.replicas {
        faults.within("spec.replicas", replicas, 0, MAX_REPLICAS);
    }
    if spec.port == Some(0) {
        faults.add("spec.port", "0", "is not a port; write 1 to 65535");
    }
    let key = faults.key(&spec.key);
    if spec.strategy != Strategy::ConsistentHash {
        faults.unbuilt("spec.strategy", format!("{:?}", spec.strategy), "write ConsistentHash");
    }
    let hasher = faults.hashing(&spec.hashing, seed);
    let pace = faults.pace(pool);
    faults.notice(&spec.notice);
    faults.duration("spec.drain.timeout", spec.drain.timeout, GoDuration::from_secs(1), GoDuration::from_secs(3_600));
    if spec.limits.idle != GoDuration::default() {
        let day = GoDuration::from_secs(86_400);
        faults.duration("spec.limits.idle", spec.limits.idle, GoDuration::from_secs(1), day);
    }
    if spec.gateway.is_some() {
        faults.unbuilt("spec.gateway", "an address book", "leave it out");
    }
    if spec.router.replicas > 0 {
        faults.unbuilt("spec.router.replicas", spec.router.replicas, "write 0, and `role: router` in the members file");
    }
    if spec.autoscaling.is_some() {
        faults.unbuilt("spec.autoscaling", "an autoscaler", "leave it out");
    }
    if spec.redis.is_some() {
        faults.unbuilt("spec.redis", "a Redis", "leave it out");
    }
    faults.finish(CheckedPool {
        name,
        uid: pool.metadata.uid.clone(),
        replicas: spec.replicas,
        hasher,
        settings: Settings {
            key,
            unit: spec.rebalance.unit,
            owner_unreachable: spec.owner_unreachable,
            notice: spec.notice.clone(),
            drain: spec.drain,
            limits: spec.limits,
            rate: match spec.rebalance.rate {
                Rate::PerSecond(rate) => settings::Rate(rate),
                // A sidecar on its own does not know how large the pool is.
                Rate::Share(_) => settings::Rate::default(),
            },
        },
        pace,
    })
}

#[derive(Default)]
struct Checker(Vec<Fault>);

impl Checker {
    fn finish<T>(self, value: T) -> Result<T, Faults> {
        if self.0.is_empty() { Ok(value) } else { Err(Faults(self.0)) }
    }

    fn add(&mut self, field: &str, value: impl fmt::Display, want: impl Into<String>) {
        self.0.push(Fault { field: field.to_owned(), value: value.to_string(), want: want.into() });
    }

    fn unbuilt(&mut self, field: &str, value: impl fmt::Display, instead: &str) {
        self.add(field, value, format!("is not built yet; {instead}"));
    }

    fn within(&mut self, field: &str, value: u32, least: u32, most: u32) {
        if !(least..=most).contains(&value) {
            self.add(field, value, format!("is out of range; write {least} to {most}"));
        }
    }

    fn duration(&mut self, field: &str, value: GoDuration, least: GoDuration, most: GoDuration) -> Duration {
        if !(least..=most).contains(&value) {
            self.add(field, value, format!("is out of range; write {least} to {most}"));
        }
        value.0
    }

    fn name(&mut self, name: &str) {
        let label = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if name.is_empty() || name.len() > MAX_NAME || !label {
            let want = format!("is not a name; write 1 to {MAX_NAME} of a-z, 0-9 and -, with no - at either end");
            self.add("metadata.name", format!("{name:?}"), want);
        }
    }

    fn key(&mut self, key: &KeySpec) -> settings::KeySpec {
        if key.from.is_empty() {
            self.add("spec.key.from", "[]", "names no source; write for example - query: user");
        }
        if key.from.len() > 8 {
            self.add("spec.key.from", format!("{} sources", key.from.len()), "are too many; write at most 8");
        }
        if key.trust != Trust::Routing {
            self.unbuilt("spec.key.trust", format!("{:?}", key.trust), "write Routing");
        }
        let from = key.from.iter().enumerate().filter_map(|(i, source)| self.source(i, source)).collect();
        settings::KeySpec { from, missing: key.missing, trust: settings::Trust::Routing }
    }

    fn source(&mut self, index: usize, source: &KeySource) -> Option<settings::KeySource> {
        let field = |kind: &str| format!("spec.key.from[{index}].{kind}");
        match source {
            KeySource::Query(name) => {
                let named = !name.is_empty() && name.len() <= 256;
                self.require(named, &field("query"), name, "write a parameter's name");
                Some(settings::KeySource::Query(name.clone()))
            }
            KeySource::Header(name) => {
                let good =
                    http::HeaderName::from_bytes(name.as_bytes()).is_ok_and(|n| !n.as_str().starts_with("wspool"));
                let want = "write a header's name, and none that begins with wspool: clients' own are stripped";
                self.require(good, &field("header"), name, want);
                Some(settings::KeySource::Header(name.clone()))
            }
            KeySource::Cookie(name) => {
                let good = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
                self.require(good, &field("cookie"), name, "write a cookie's name");
                Some(settings::KeySource::Cookie(name.clone()))
            }
            KeySource::Path(template) => {
                let keys = template.split('/').filter(|segment| *segment == "{key}").count();
                let braces = template.matches(['{', '}']).count();
                let good = template.starts_with('/') && keys == 1 && braces == 2 && !template.contains(['?', '#']);
                let want = "write a path with one segment {key}, for example /rooms/{key}";
                self.require(good, &field("path"), template, want);
                Some(settings::KeySource::Path(template.clone()))
            }
            KeySource::Subprotocol(prefix) => {
                self.unbuilt(&field("subprotocol"), prefix, "write a query, header, cookie or path");
                None
            }
            KeySource::Jwt(claim) => {
                self.unbuilt(&field("jwt"), claim, "write a query, header, cookie or path");
                None
            }
        }
    }

    fn require(&mut self, good: bool, field: &str, value: &str, want: &str) {
        if !good {
            self.add(field, format!("{value:?}"), format!("cannot be used; {want}"));
        }
    }

    fn hashing(&mut self, hashing: &Hashing, seed: Option<&str>) -> KeyHasher {
        if hashing.algorithm != Algorithm::Rendezvous {
            self.unbuilt("spec.hashing.algorithm", format!("{:?}", hashing.algorithm), "write Rendezvous");
        }
        match (&hashing.seed_from, seed) {
            (None, _) => KeyHasher::Xxh64,
            (Some(SeedSource::SecretKeyRef(secret)), _) => {
                self.unbuilt("spec.hashing.seedFrom.secretKeyRef", &secret.name, "write file: path");
                KeyHasher::Xxh64
            }
            (Some(SeedSource::File(path)), seed) => {
                match seed.unwrap_or_default().trim().to_owned().try_into() {
                    Ok(secret) => return KeyHasher::SipHash24(secret),
                    // The value is a secret: only the path is named.
                    Err(error) => {
                        self.add("spec.hashing.seedFrom.file", path.display(), format!("is refused: {error}"))
                    }
                }
                KeyHasher::Xxh64
            }
        }
    }

    fn pace(&mut self, pool: &WebSocketPool) -> Pace {
        let rebalance = &pool.spec.rebalance;
        let good = match rebalance.rate {
            Rate::PerSecond(rate) => (1..=100_000).contains(&rate),
            Rate::Share(PerMinute(share)) => (1..=100_000).contains(&share),
        };
        if !good {
            let want = "is out of range; write 1 to 100000 per second, or 0.001% to 100% per minute";
            self.add("spec.rebalance.rate", rebalance.rate, want);
        }
        self.within("spec.rebalance.maxInFlight", rebalance.max_in_flight, 1, 1_000_000);
        self.within("spec.rebalance.minReturned", u32::from(rebalance.min_returned), 0, 100);
        let (second, hour) = (GoDuration::from_secs(1), GoDuration::from_secs(3_600));
        Pace {
            mode: rebalance.mode,
            settle: self.duration("spec.rebalance.settle", rebalance.settle, GoDuration::default(), hour),
            rate: rebalance.rate,
            max_in_flight: u64::from(rebalance.max_in_flight),
            return_timeout: self.duration("spec.rebalance.returnTimeout", rebalance.return_timeout, second, hour),
            min_returned: u64::from(rebalance.min_returned),
        }
    }

    fn notice(&mut self, notice: &settings::Notice) {
        for (field, code) in [("closeCode", notice.close_code), ("appCloseCode", notice.app_close_code)] {
            // RFC 6455, 7.4.1: 1004 to 1006 and 1015 never stand in a frame; the rest below 3000 is not assigned.
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                let want = "cannot stand in a close frame; write 1000 to 1003, 1007 to 1014, or 3000 to 4999";
                self.add(&format!("spec.notice.{field}"), code, want);
            }
        }
        if let Some(message) = &notice.message
            && message.len() > 4_096
        {
            let want = "are too many; write at most 4096";
            self.add("spec.notice.message", format!("{} bytes", message.len()), want);
        }
        if notice.reason.len() > 123 {
            // RFC 6455, 5.5: a control frame carries 125 bytes, two of them the code.
            let want = "do not fit into a close frame; write at most 123";
            self.add("spec.notice.reason", format!("{} bytes", notice.reason.len()), want);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(spec: &str) -> String {
        format!("apiVersion: wspool.dev/v1alpha1\nkind: WebSocketPool\nmetadata: {{name: chat}}\nspec:\n{spec}")
    }

    fn pool(spec: &str) -> WebSocketPool {
        WebSocketPool::from_yaml(&yaml(spec)).unwrap()
    }

    fn faults(spec: &str) -> Vec<String> {
        check(&pool(spec), None).unwrap_err().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_example_of_the_design_is_accepted_without_what_is_not_built() {
        let checked = check(
            &pool(
                "  target: {apiVersion: apps/v1, kind: Deployment, name: chat}
  port: 3000
  replicas: 3
  key: {from: [{query: user}, {path: '/rooms/{key}'}], missing: Spread, trust: Routing}
  strategy: ConsistentHash
  hashing: {algorithm: Rendezvous}
  ownerUnreachable: Fallback
  rebalance: {mode: Automatic, unit: Key, settle: 5s, rate: 50, maxInFlight: 200, returnTimeout: 60s, minReturned: 80}
  notice: {protocol: WebSocket, closeCode: 1012, appCloseCode: 1001, message: null}
  drain: {timeout: 60s}
  limits: {connections: 50000, handshakesPerSecond: 500, perKey: 0}
  router: {replicas: 0}",
            ),
            None,
        )
        .unwrap();
        assert_eq!(checked.replicas, Some(3));
        assert_eq!(checked.pace.settle, Duration::from_secs(5));
        assert_eq!(checked.settings.key.from.len(), 2);
    }

    #[test]
    fn a_field_that_does_not_parse_is_named_with_its_line() {
        for (spec, says) in [
            (
                "  key: {from: [{query: user}]}\n  rebalance: {rate: fast}",
                "spec.rebalance.rate: invalid value: string \"fast\"",
            ),
            ("  key: {from: [{query: user}]}\n  rebalance: {settle: 5}", "spec.rebalance: \"5\" is not a duration"),
            ("  key: {from: [{query: user}]}\n  colour: blue", "unknown field `colour`"),
            (
                "  key: {from: [{query: user}]}\n  strategy: RoundRobin",
                "expected `ConsistentHash` or `LeastConnections`",
            ),
        ] {
            let refused = WebSocketPool::from_yaml(&yaml(spec)).unwrap_err().to_string();
            assert!(refused.contains(says) && refused.contains("line 6"), "{refused}");
        }
    }

    #[test]
    fn every_fault_is_named_with_its_value_and_what_would_be_right() {
        let spec = "  key: {from: [{jwt: sub}, {path: /rooms}, {header: 'a b'}], trust: Verified}
  strategy: LeastConnections
  hashing: {algorithm: HAProxy}
  rebalance: {rate: 0, settle: 2h, returnTimeout: 10ms, maxInFlight: 0, minReturned: 101}
  notice: {closeCode: 1006}
  drain: {timeout: 0s}
  gateway: {path: /gateway, url: 'wss://s{slot}/'}
  router: {replicas: 1}
  autoscaling: {minReplicas: 1, maxReplicas: 2, connectionsPerPod: 1000}
  redis: {urlFrom: {secretKeyRef: {name: redis, key: url}}}";
        insta::assert_snapshot!(faults(spec).join("\n"));
    }

    #[test]
    fn a_secret_seed_keys_the_hash_and_never_appears_in_a_fault() {
        let spec = "  key: {from: [{query: user}]}\n  hashing: {seedFrom: {file: seed.hex}}";
        let seeded = check(&pool(spec), Some("000102030405060708090a0b0c0d0e0f\n")).unwrap();
        assert!(matches!(seeded.hasher, KeyHasher::SipHash24(_)));
        let refused = check(&pool(spec), Some("hunter2")).unwrap_err().to_string();
        assert!(refused.starts_with("spec.hashing.seedFrom.file: seed.hex is refused"), "{refused}");
        assert!(!refused.contains("hunter2"));
    }

    #[test]
    fn a_name_that_derived_names_cannot_carry_is_refused() {
        for name in ["", "Chat", "-chat", &"c".repeat(51)] {
            let mut pool = pool("  key: {from: [{query: user}]}");
            pool.metadata.name = Some(name.to_owned());
            assert!(check(&pool, None).is_err(), "{name:?}");
        }
    }
}
