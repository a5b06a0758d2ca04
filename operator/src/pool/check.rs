//! From a parsed pool to one that can be worked with: every fault at once, each naming its field, its value, and what
//! would be right. What the API server refuses is refused here too, so that `standalone` is no laxer.

use std::fmt;
use std::time::Duration;

use ring::KeyHasher;
use ring::agreement::{Agreement, HAPROXY_WEIGHTS, RING_SIZES, TABLE_SIZES, is_table_size};
use ring::duration::GoDuration;
use ring::settings::{
    self, Gateway, KeySource, KeySpec, MaxPinned, Mounted, NoticeProtocol, Redis, SecretKey, Settings, Trust,
};

use super::rules::{self, Span};
use super::{
    Algorithm, Autoscaling, EnvoyMaglev, EnvoyRing, HAProxy, Hashing, HttpRoutes, Mode, PerMinute, PoolSpec, Rate,
    Routes, SeedSource, Strategy, Target, WebSocketPool,
};

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
    /// Percent above the mean that a member may hold, where load decides.
    pub tolerance: u64,
    /// How long nothing is moved to a slot that has a new holder: whoever sends clients to its address has to hear of it.
    pub lead: Duration,
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
    faults.require(is_name(&name), "metadata.name", &name, rules::NAME);
    if let Some(target) = &spec.target {
        faults.target(target);
    }
    if let Some(replicas) = spec.replicas {
        faults.within("spec.replicas", replicas, 0, MAX_REPLICAS);
    }
    if let Some(port) = spec.port {
        faults.within("spec.port", u32::from(port), 1, 65_535);
    }
    if spec.key.from.is_empty() && spec.strategy == Strategy::ConsistentHash {
        faults.add("spec.key.from", "[]", rules::NO_SOURCE);
    }
    faults.key(&spec.key);
    faults.jwt(&spec.key, &name);
    if spec.strategy == Strategy::LeastConnections {
        if spec.hashing.algorithm != Algorithm::Rendezvous {
            let algorithm = format!("{:?}", spec.hashing.algorithm);
            faults.add("spec.hashing.algorithm", algorithm, rules::LEAST_CONNECTIONS);
        }
        if spec.limits.per_key > 0 {
            faults.add("spec.limits.perKey", spec.limits.per_key, rules::LEAST_CONNECTIONS);
        }
    }
    let hasher = faults.hashing(&spec.hashing, seed);
    let pace = faults.pace(pool);
    faults.duration(&rules::MAX_PINNED, spec.rebalance.max_pinned);
    faults.notice(&spec.notice);
    faults.duration(&rules::DRAIN_TIMEOUT, spec.drain.timeout);
    faults.limits(&spec.limits);
    if let Some(gateway) = &spec.gateway {
        faults.gateway(gateway);
    }
    if let Some(routes) = &spec.routes {
        faults.routes(routes, spec);
    }
    faults.within("spec.router.replicas", spec.router.replicas, 0, MAX_REPLICAS);
    if let Some(autoscaling) = &spec.autoscaling {
        faults.autoscaling(autoscaling);
    }
    if let Some(redis) = &spec.redis {
        faults.redis(redis);
    }
    faults.finish(CheckedPool {
        name,
        uid: pool.metadata.uid.clone(),
        replicas: spec.replicas,
        hasher,
        settings: Settings {
            key: spec.key.clone(),
            strategy: spec.strategy,
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
            max_pinned: MaxPinned(spec.rebalance.max_pinned),
            gateway: spec.gateway.clone(),
            messages: spec.messages,
            redis: spec.redis.clone().map(|redis| named(redis, pool)),
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

    fn duration(&mut self, span: &Span, value: GoDuration) -> Duration {
        if !span.contains(value) {
            self.add(span.field, value, span.to_string());
        }
        value.0
    }

    fn require(&mut self, good: bool, field: &str, value: &str, want: &str) {
        if !good {
            self.add(field, format!("{value:?}"), want);
        }
    }

    fn target(&mut self, target: &Target) {
        let Target { api_version, kind, name } = target;
        let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
        let versioned = version.starts_with('v') && version[1..].starts_with(|c: char| c.is_ascii_digit());
        let known = is_subdomain(group) && versioned && version.bytes().all(is_lower_alphanumeric);
        self.require(known, "spec.target.apiVersion", api_version, rules::API_VERSION);
        let good =
            kind.starts_with(|c: char| c.is_ascii_uppercase()) && kind.bytes().all(|b| b.is_ascii_alphanumeric());
        self.require(good, "spec.target.kind", kind, rules::KIND);
        self.require(is_subdomain(name), "spec.target.name", name, rules::TARGET);
    }

    fn key(&mut self, key: &KeySpec) {
        if key.from.len() > 8 {
            self.add("spec.key.from", format!("{} sources", key.from.len()), "are too many; write at most 8");
        }
        for (index, source) in key.from.iter().enumerate() {
            let (kind, name, good, want) = match source {
                KeySource::Query(name) => ("query", name, is_source(name), rules::QUERY),
                KeySource::Header(name) => {
                    let ours = name.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case("wspool"));
                    ("header", name, is_token(name) && !ours, rules::HEADER)
                }
                KeySource::Cookie(name) => ("cookie", name, is_token(name), rules::COOKIE),
                KeySource::Path(template) => ("path", template, is_template(template), rules::PATH),
                KeySource::Subprotocol(prefix) => ("subprotocol", prefix, is_token(prefix), rules::SUBPROTOCOL),
                KeySource::Jwt(claim) => ("jwt", claim, is_source(claim), rules::JWT),
            };
            self.require(good, &format!("spec.key.from[{index}].{kind}"), name, want);
        }
        if key.trust == Trust::Verified && !key.from.iter().all(|source| matches!(source, KeySource::Jwt(_))) {
            self.add("spec.key.trust", "Verified", rules::VERIFIED);
        }
    }

    fn jwt(&mut self, key: &KeySpec, pool: &str) {
        let read = key.from.iter().any(|source| matches!(source, KeySource::Jwt(_)));
        let Some(jwt) = &key.jwt else {
            if read {
                self.add("spec.key.jwt", "nothing", rules::NO_JWT);
            }
            return;
        };
        if !read {
            self.add("spec.key.jwt", "it", rules::UNREAD_JWT);
        }
        for fault in jwt.faults() {
            self.add(&format!("spec.key.jwt{}", fault.field), fault.value, fault.want);
        }
        for (field, most, list) in [
            ("audiences", rules::MAX_AUDIENCES, jwt.audiences.len()),
            ("algorithms", rules::MAX_ALGORITHMS, jwt.algorithms.len()),
            ("token", rules::MAX_TOKEN_SOURCES, jwt.token.len()),
        ] {
            if list > most {
                self.add(&format!("spec.key.jwt.{field}"), list, format!("are too many; write at most {most}"));
            }
        }
        for (field, mounted) in [("jwksFrom", &jwt.jwks_from), ("caFrom", &jwt.ca_from)] {
            if let Some(Mounted::SecretKeyRef(secret)) = mounted {
                let field = format!("spec.key.jwt.{field}.secretKeyRef.name");
                let good = secret.name.strip_suffix(rules::JWKS_SUFFIX) == Some(pool);
                self.require(good, &field, &secret.name, rules::JWKS_SECRET);
            }
        }
    }

    fn hashing(&mut self, hashing: &Hashing, seed: Option<&str>) -> KeyHasher {
        let Hashing { algorithm, seed_from, envoy_ring, envoy_maglev, haproxy } = hashing;
        for (field, is_there, of) in [
            ("envoyRing", envoy_ring.is_some(), Algorithm::EnvoyRing),
            ("envoyMaglev", envoy_maglev.is_some(), Algorithm::EnvoyMaglev),
            ("haproxy", haproxy.is_some(), Algorithm::HAProxy),
        ] {
            if is_there && *algorithm != of {
                self.add(&format!("spec.hashing.{field}"), "it", rules::of_algorithm(of));
            }
        }
        if seed_from.is_some() && *algorithm != Algorithm::Rendezvous {
            self.add("spec.hashing.seedFrom", "it", rules::of_algorithm(Algorithm::Rendezvous));
        }
        let agreement = match algorithm {
            Algorithm::Rendezvous => return self.seed(seed_from.as_ref(), seed),
            Algorithm::NginxKetama => Agreement::NginxKetama,
            Algorithm::IngressNginx => Agreement::IngressNginx,
            Algorithm::EnvoyRing => {
                let EnvoyRing { minimum_ring_size } = envoy_ring.unwrap_or_default();
                let (least, most) = RING_SIZES.into_inner();
                self.within("spec.hashing.envoyRing.minimumRingSize", minimum_ring_size, least, most);
                Agreement::EnvoyRing { minimum_ring_size }
            }
            Algorithm::EnvoyMaglev => {
                let EnvoyMaglev { table_size } = envoy_maglev.unwrap_or_default();
                let field = "spec.hashing.envoyMaglev.tableSize";
                let (least, most) = TABLE_SIZES.into_inner();
                self.within(field, table_size, least, most);
                if TABLE_SIZES.contains(&table_size) && !is_table_size(table_size) {
                    self.add(field, table_size, rules::TABLE_SIZE);
                }
                Agreement::EnvoyMaglev { table_size }
            }
            Algorithm::HAProxy => {
                let HAProxy { hash_key, weight } = haproxy.unwrap_or_default();
                let (least, most) = HAPROXY_WEIGHTS.into_inner();
                self.within("spec.hashing.haproxy.weight", u32::from(weight), least, most);
                Agreement::HAProxy { hash_key, weight }
            }
        };
        KeyHasher::Agreed(agreement)
    }

    fn seed(&mut self, source: Option<&SeedSource>, seed: Option<&str>) -> KeyHasher {
        match (source, seed) {
            (None, _) => KeyHasher::Xxh64,
            (Some(SeedSource::SecretKeyRef(secret)), _) => {
                self.unbuilt("spec.hashing.seedFrom.secretKeyRef", &secret.name, "write file: path");
                self.secret("spec.hashing.seedFrom.secretKeyRef", secret);
                KeyHasher::Xxh64
            }
            (Some(SeedSource::File(path)), seed) => {
                match seed.unwrap_or_default().trim().to_owned().try_into() {
                    Ok(secret) => return KeyHasher::SipHash24(secret),
                    // The value is a secret: only the path is named.
                    Err(error) => {
                        self.add("spec.hashing.seedFrom.file", path.display(), format!("is refused: {error}"));
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
            self.add("spec.rebalance.rate", rebalance.rate, rules::RATE);
        }
        self.within("spec.rebalance.maxInFlight", rebalance.max_in_flight, 1, 1_000_000);
        self.within("spec.rebalance.minReturned", u32::from(rebalance.min_returned), 0, 100);
        self.within("spec.rebalance.tolerance", u32::from(rebalance.tolerance), 0, 100);
        Pace {
            mode: rebalance.mode,
            settle: self.duration(&rules::SETTLE, rebalance.settle),
            rate: rebalance.rate,
            max_in_flight: u64::from(rebalance.max_in_flight),
            return_timeout: self.duration(&rules::RETURN_TIMEOUT, rebalance.return_timeout),
            min_returned: u64::from(rebalance.min_returned),
            tolerance: u64::from(rebalance.tolerance),
            lead: Duration::ZERO,
        }
    }

    fn notice(&mut self, notice: &settings::Notice) {
        let codes = [("closeCode", notice.close_code), ("appCloseCode", Some(notice.app_close_code))];
        for (field, code) in codes.into_iter().filter_map(|(field, code)| Some((field, code?))) {
            // RFC 6455, 7.4.1: 1004 to 1006 and 1015 never stand in a frame; the rest below 3000 is not assigned.
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                self.add(&format!("spec.notice.{field}"), code, rules::CLOSE_CODE);
            }
        }
        let protocol = notice.protocol;
        if let Some(code) = notice.close_code
            && protocol.fatal_codes().iter().any(|codes| codes.contains(&code))
        {
            self.add("spec.notice.closeCode", code, rules::fatal_code(protocol).unwrap_or_default());
        }
        if let Some(message) = &notice.message {
            let text = format!("a text of {} bytes", message.len());
            if message.len() > rules::MAX_MESSAGE {
                self.add("spec.notice.message", &text, rules::MESSAGE);
            }
            if let Some(why) = protocol.no_message() {
                self.add("spec.notice.message", &text, why);
            }
            if protocol == NoticeProtocol::ActionCable && rules::forbids_return(message) {
                self.add("spec.notice.message", &text, rules::STAY_AWAY);
            }
        }
        if notice.reason.len() > rules::MAX_REASON {
            self.add("spec.notice.reason", format!("a text of {} bytes", notice.reason.len()), rules::REASON);
        }
    }

    fn limits(&mut self, limits: &settings::Limits) {
        self.within("spec.limits.connections", limits.connections, 0, 10_000_000);
        self.within("spec.limits.handshakesPerSecond", limits.handshakes_per_second, 0, 1_000_000);
        self.within("spec.limits.perKey", limits.per_key, 0, 10_000_000);
        self.duration(&rules::IDLE, limits.idle);
    }

    fn gateway(&mut self, gateway: &Gateway) {
        let Gateway { path, url, origins, per_client, trusted_hops } = gateway;
        let good = path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && !path.contains(['?', '#']);
        self.require(good, "spec.gateway.path", path, rules::GATEWAY_PATH);
        let rest = url.strip_prefix("wss://").or_else(|| url.strip_prefix("ws://"));
        let good = rest.is_some_and(|rest| rest.contains("{slot}") && rest.matches(['{', '}']).count() == 2);
        self.require(good, "spec.gateway.url", url, rules::GATEWAY_URL);
        if origins.len() > rules::MAX_ORIGINS {
            self.add("spec.gateway.origins", format!("{} origins", origins.len()), rules::ORIGINS);
        }
        for (index, origin) in origins.iter().enumerate() {
            self.require(is_origin(origin), &format!("spec.gateway.origins[{index}]"), origin, rules::ORIGIN);
        }
        self.within("spec.gateway.perClient", *per_client, 0, 1_000_000);
        self.within("spec.gateway.trustedHops", u32::from(*trusted_hops), 0, 8);
    }

    fn routes(&mut self, routes: &Routes, spec: &PoolSpec) {
        match &spec.gateway {
            None => self.add("spec.routes", "it", rules::NO_GATEWAY),
            Some(Gateway { url, .. }) => {
                self.require(is_routable(url), "spec.gateway.url", url, rules::ROUTED_URL);
                let by_load = spec.strategy == Strategy::LeastConnections;
                let is_rewritten = matches!(routes, Routes::HttpRoute(_)) && has_slot_in_path(url);
                self.require(!(by_load && is_rewritten), "spec.gateway.url", url, rules::REWRITTEN_URL);
            }
        }
        if let Routes::HttpRoute(HttpRoutes { parent_refs }) = routes
            && !(1..=32).contains(&parent_refs.len())
        {
            self.add("spec.routes.httpRoute.parentRefs", format!("{} Gateways", parent_refs.len()), rules::PARENTS);
        }
    }

    fn autoscaling(&mut self, autoscaling: &Autoscaling) {
        let Autoscaling { min_replicas, max_replicas, connections_per_pod } = *autoscaling;
        self.within("spec.autoscaling.minReplicas", min_replicas, 1, MAX_REPLICAS);
        self.within("spec.autoscaling.maxReplicas", max_replicas, 1, MAX_REPLICAS);
        self.within("spec.autoscaling.connectionsPerPod", connections_per_pod, 1, 1_000_000);
        if min_replicas > max_replicas {
            self.add("spec.autoscaling.minReplicas", min_replicas, rules::FEWEST);
        }
    }

    fn redis(&mut self, redis: &Redis) {
        for (field, mounted) in [("urlFrom", Some(&redis.url_from)), ("caFrom", redis.ca_from.as_ref())] {
            if let Some(Mounted::SecretKeyRef(secret)) = mounted {
                self.secret(&format!("spec.redis.{field}.secretKeyRef"), secret);
            }
        }
        if let Some(Mounted::SecretKeyRef(ca)) = &redis.ca_from {
            let together = matches!(&redis.url_from, Mounted::SecretKeyRef(url) if url.name == ca.name);
            self.require(together, "spec.redis.caFrom.secretKeyRef.name", &ca.name, rules::REDIS_SECRET);
        }
        if let Some(prefix) = &redis.prefix {
            let good = (1..=rules::MAX_PREFIX).contains(&prefix.len()) && !prefix.contains(['{', '}']);
            self.require(good, "spec.redis.prefix", prefix, rules::PREFIX);
        }
    }

    fn secret(&mut self, field: &str, secret: &SecretKey) {
        self.require(is_subdomain(&secret.name), &format!("{field}.name"), &secret.name, rules::SECRET);
        let good = !secret.key.is_empty()
            && secret.key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        self.require(good, &format!("{field}.key"), &secret.key, rules::SECRET_KEY);
    }
}

/// The same with the prefix that is meant where none is written.
fn named(redis: Redis, pool: &WebSocketPool) -> Redis {
    let namespace = pool.metadata.namespace.as_deref().unwrap_or("default");
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let prefix = redis.prefix.unwrap_or_else(|| format!("wspool:{namespace}/{name}:"));
    Redis { prefix: Some(prefix), ..redis }
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// A pool's name, which begins the names of Services.
fn is_name(name: &str) -> bool {
    name.len() <= rules::MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-')
        && !name.ends_with('-')
}

/// The name of most objects in Kubernetes.
fn is_subdomain(name: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.bytes().all(|b| is_lower_alphanumeric(b) || matches!(b, b'-' | b'.'))
        && name.starts_with(ends)
        && name.ends_with(ends)
}

fn is_source(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= rules::MAX_SOURCE
}

/// A token of RFC 9110, as the names of headers and cookies are.
fn is_token(name: &str) -> bool {
    name.len() <= rules::MAX_SOURCE && http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

/// An origin as browsers send it, or the star.
fn is_origin(origin: &str) -> bool {
    let Some((scheme, host)) = origin.split_once("://") else { return origin == "*" };
    scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| is_lower_alphanumeric(b) || matches!(b, b'+' | b'.' | b'-'))
        && !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#'))
}

/// An address whose host or path tells a slot from the others.
fn is_routable(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = authority.split_once(':').unwrap_or((authority, "0"));
    let of_host = |byte: u8| is_lower_alphanumeric(byte) || matches!(byte, b'{' | b'}' | b'.' | b'-');
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    !host.is_empty() && host.bytes().all(of_host) && digits && !path.contains(['?', '#'])
}

/// An address whose path tells a slot from the others.
fn has_slot_in_path(url: &str) -> bool {
    let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    path.is_some_and(|(_, path)| path.contains(Gateway::SLOT))
}

/// A path in which one whole segment is `{key}`.
fn is_template(path: &str) -> bool {
    let keys = path.split('/').filter(|segment| *segment == "{key}").count();
    let braces = path.matches(['{', '}']).count();
    is_source(path) && path.starts_with('/') && keys == 1 && braces == 2 && !path.contains(['?', '#'])
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
  rebalance: {mode: Automatic, unit: Key, settle: 5s, rate: 50, maxInFlight: 200, returnTimeout: 60s, minReturned: 80, maxPinned: 1h, tolerance: 10}
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
                "spec.rebalance.rate: \"fast\" is not a rate; write 1 to 100000 connections per second",
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
  rebalance: {rate: 0, settle: 2h, returnTimeout: 10ms, maxInFlight: 0, minReturned: 101, maxPinned: 25h, tolerance: 101}
  notice: {closeCode: 1006}
  drain: {timeout: 0s}
  gateway: {path: /gateway, url: 'wss://s{slot}/'}
  autoscaling: {minReplicas: 3, maxReplicas: 2, connectionsPerPod: 1000}
  redis: {urlFrom: {secretKeyRef: {name: redis, key: url}}}";
        insta::assert_snapshot!(faults(spec).join("\n"));
    }

    #[test]
    fn the_slot_stays_in_the_address_that_servers_see_where_load_decides() {
        let faults = |strategy: &str, url: &str, routes: &str| {
            let routes = format!("  gateway: {{url: '{url}'}}\n  routes: {{{routes}}}");
            let pool = pool(&format!("  key: {{from: [{{query: user}}]}}\n  strategy: {strategy}\n{routes}"));
            check(&pool, None).err().map(|faults| faults.to_string())
        };
        let (by_host, by_path) = ("wss://s{slot}.example.com/ws", "wss://example.com/{slot}");
        let http_route = "httpRoute: {parentRefs: [{name: front}]}";
        let refused = faults("LeastConnections", by_path, http_route);
        assert_eq!(refused, Some(format!("spec.gateway.url: {by_path:?} {}", rules::REWRITTEN_URL)));
        assert_eq!(faults("LeastConnections", by_host, http_route), None);
        assert_eq!(faults("LeastConnections", by_path, "ingress: {}"), None);
        assert_eq!(faults("ConsistentHash", by_path, http_route), None);
    }

    #[test]
    fn what_would_keep_clients_away_is_refused_by_protocol() {
        for (notice, says) in [
            (
                "protocol: Phoenix, closeCode: 1000",
                "spec.notice.closeCode: 1000 keeps clients of Phoenix away for good; leave it out, which means 1012, or \
                 write none of 1000",
            ),
            (
                "protocol: Pusher, closeCode: 4300",
                "spec.notice.closeCode: 4300 keeps clients of Pusher away for good; leave it out, which means 4200, or \
                 write none of 4000 to 4099, 4300 to 4999",
            ),
            (
                "protocol: SocketIO, message: '41'",
                "spec.notice.message: a text of 2 bytes is read as a packet by clients of SocketIO, which breaks them; \
                 leave it out",
            ),
            (
                "protocol: ActionCable, message: '{\"type\":\"disconnect\", \"reconnect\" : false}'",
                "spec.notice.message: a text of 42 bytes tells clients of ActionCable to stay away; leave it out, or \
                 write one with \"reconnect\":true",
            ),
        ] {
            assert_eq!(faults(&format!("  key: {{from: [{{query: user}}]}}\n  notice: {{{notice}}}")), [says]);
        }
    }

    #[test]
    fn every_protocol_is_accepted_as_it_is_and_with_its_own_close_code() {
        for protocol in NoticeProtocol::ALL {
            let code = protocol.close_code();
            for notice in [format!("protocol: {protocol:?}"), format!("protocol: {protocol:?}, closeCode: {code}")] {
                let spec = format!("  key: {{from: [{{query: user}}]}}\n  notice: {{{notice}}}");
                let checked = check(&pool(&spec), None).unwrap();
                assert_eq!((checked.settings.notice.protocol, checked.settings.notice.code()), (protocol, code));
            }
        }
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
