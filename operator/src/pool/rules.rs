//! What the values of fields must satisfy, beyond their types: in CEL for the API server, and in words for people.
//!
//! The CRD carries each rule with its words; [`check`](super::check) says the same words of the same fields. A value
//! that the CRD lets in must be readable by the types here: one that is not would stop the watch of every pool.

use std::fmt;
use std::ops::RangeInclusive;

use ring::duration::{self, GoDuration};
use ring::notice;
use ring::settings::NoticeProtocol;
use ring::settings::jwt::words;

use super::Algorithm;

/// The longest name: names derived from it must fit into 63 characters.
pub(super) const MAX_NAME: usize = 50;
/// The most characters of a query parameter's name, a cookie's, a header's, a path and the like.
pub(super) const MAX_SOURCE: usize = 256;
/// The most bytes of a notice's message.
pub(super) const MAX_MESSAGE: usize = 4_096;
/// The most bytes of a close frame's reason: a control frame carries 125, two of them the code (RFC 6455, 5.5).
pub(super) const MAX_REASON: usize = 123;

// Each is said after a field and its value.
pub(super) const NAME: &str = "is not a name; write 1 to 50 of a-z, 0-9 and -, a letter first and no - at the end";
pub(super) const API_VERSION: &str = "cannot be used; write a group and version, for example apps/v1";
pub(super) const KIND: &str = "cannot be used; write a kind, for example Deployment";
pub(super) const TARGET: &str = "cannot be used; write the name of a workload";
pub(super) const NO_SOURCE: &str =
    "names no source; write for example - query: user, or take the strategy LeastConnections, which needs no key";
pub(super) const ONE_SOURCE: &str = "is not one source; write one of query, header, cookie, path, subprotocol and jwt";
pub(super) const QUERY: &str = "cannot be used; write a parameter's name";
pub(super) const HEADER: &str =
    "cannot be used; write a header's name, and none that begins with wspool: clients' own are stripped";
pub(super) const COOKIE: &str = "cannot be used; write a cookie's name";
pub(super) const PATH: &str = "cannot be used; write a path with one segment {key}, for example /rooms/{key}";
pub(super) const SUBPROTOCOL: &str = "cannot be used; write the prefix of a subprotocol";
pub(super) const JWT: &str = "cannot be used; write a claim's name";
pub(super) const VERIFIED: &str = "needs a token from every client; write only jwt sources";
pub(super) const NO_JWT: &str =
    "says how a token is checked; write issuer, and jwksUri or jwksFrom, for the jwt sources of from";
pub(super) const UNREAD_JWT: &str = "has no part without a jwt source in from; leave it out";
pub(super) const JWKS_SECRET: &str = "is not mounted in the pool's pods; write the pool's name with -jwks behind it";
pub(super) const LEAST_CONNECTIONS: &str = "has no part in the strategy LeastConnections; leave it out";
pub(super) const TABLE_SIZE: &str = "is not a prime number; write for example 65537";
pub(super) const RATE: &str =
    "is not a rate; write 1 to 100000 connections per second, or 0.001% to 100% of them per minute";
pub(super) const CLOSE_CODE: &str = "cannot stand in a close frame; write 1000 to 1003, 1007 to 1014, or 3000 to 4999";
pub(super) const MESSAGE: &str = "is too long; write at most 4096 bytes";
pub(super) const STAY_AWAY: &str =
    "tells clients of ActionCable to stay away; leave it out, or write one with \"reconnect\":true";
pub(super) const REASON: &str = "does not fit into a close frame; write at most 123 bytes";
pub(super) const GATEWAY_PATH: &str = "cannot be used; write a path without a slash at its end, for example /gateway";
/// The most origins.
pub(super) const MAX_ORIGINS: usize = 32;
pub(super) const ORIGINS: &str = "are too many; write at most 32";
pub(super) const ORIGIN: &str = "is no origin; write for example https://chat.example.com, or *";
pub(super) const GATEWAY_URL: &str =
    "cannot be used; write an address with one {slot} in it, for example wss://s{slot}.chat.example.com/";
pub(super) const NO_GATEWAY: &str =
    "leads to the slots' addresses; write gateway too, for example gateway: {url: 'wss://s{slot}.chat.example.com/'}";
pub(super) const ROUTED_URL: &str = "cannot be routed; write {slot} into the host or the path, and no query, for example wss://s{slot}.chat.example.com/";
pub(super) const REWRITTEN_URL: &str = "loses its {slot} in an HTTPRoute, and under LeastConnections servers know their addresses by it; write {slot} into the host, for example wss://s{slot}.chat.example.com/";
pub(super) const PARENTS: &str = "are not 1 to 32 Gateways; write for example - name: front";
/// Said by the API server only.
const ONE_ROUTE: &str = "is not one way; write one of ingress and httpRoute";
pub(super) const FEWEST: &str = "is more than maxReplicas; write at most as many";
/// The longest prefix of a pool's names in its Redis, in bytes.
pub(super) const MAX_PREFIX: usize = 256;
pub(super) const PREFIX: &str = "cannot be used; write 1 to 256 bytes without braces, for example wspool:prod/chat:";
pub(super) const REDIS_SECRET: &str = "is another Secret than that of urlFrom; write the same one";
pub(super) const SECRET: &str = "cannot be used; write the name of a Secret";
pub(super) const SECRET_KEY: &str = "cannot be used; write a key of the Secret";
/// What the Secret is called that pods mount for the keys of tokens: the pool's name, and this.
pub(crate) const JWKS_SUFFIX: &str = "-jwks";
pub(super) const MAX_AUDIENCES: usize = 16;
pub(super) const MAX_ALGORITHMS: usize = 12;
pub(super) const MAX_TOKEN_SOURCES: usize = 8;
/// Said by the API server only.
const ONE_PLACE: &str = "is not one place; write one of header, query, cookie and subprotocol";
/// Said by the API server only.
const NO_FILE: &str = "is not for a cluster; write secretKeyRef: {name, key}";
/// Said by the API server only: elsewhere the parser says it, with line and column.
const NOT_A_DURATION: &str = "is not a duration; write for example 500ms, 5s, 1m30s or 1h";

/// How long something may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) field: &'static str,
    least: GoDuration,
    most: GoDuration,
    /// Whether `0s` is allowed too, and means that there is no limit.
    or_none: bool,
}

pub(super) const SETTLE: Span = Span::new("spec.rebalance.settle", 0, 3_600);
pub(super) const RETURN_TIMEOUT: Span = Span::new("spec.rebalance.returnTimeout", 1, 3_600);
pub(super) const DRAIN_TIMEOUT: Span = Span::new("spec.drain.timeout", 1, 3_600);
pub(super) const MAX_PINNED: Span = Span { or_none: true, ..Span::new("spec.rebalance.maxPinned", 1, 86_400) };
const LEEWAY: Span = Span::new("spec.key.jwt.leeway", 0, 300);
pub(super) const IDLE: Span = Span { or_none: true, ..Span::new("spec.limits.idle", 1, 86_400) };

impl Span {
    /// From so many seconds to so many.
    const fn new(field: &'static str, least: u64, most: u64) -> Self {
        Self { field, least: GoDuration::from_secs(least), most: GoDuration::from_secs(most), or_none: false }
    }

    pub(super) fn contains(&self, value: GoDuration) -> bool {
        (self.least..=self.most).contains(&value) || (self.or_none && value == GoDuration::default())
    }

    fn cel(&self) -> String {
        let Self { least, most, or_none, .. } = self;
        let is = format!("self.matches(r'{}')", duration::PATTERN);
        let none = if *or_none { "duration(self) == duration('0s') || " } else { "" };
        // What is not a duration is another rule's matter.
        format!("!{is} || {none}(duration(self) >= duration('{least}') && duration(self) <= duration('{most}'))")
    }
}

/// Says what would be right.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = if self.or_none { "0s, or " } else { "" };
        write!(f, "is out of range; write {none}{} to {}", self.least, self.most)
    }
}

/// What is said of a close code after which the clients of a protocol stay away; `None` when all bring them back.
pub(super) fn fatal_code(protocol: NoticeProtocol) -> Option<String> {
    let (codes, own) = (notice::spell(protocol.fatal_codes()), protocol.close_code());
    (!codes.is_empty()).then(|| {
        format!(
            "keeps clients of {protocol:?} away for good; leave it out, which means {own}, or write none of {codes}"
        )
    })
}

/// Whether a message of Action Cable's says that its client must not come back.
pub(super) fn forbids_return(message: &str) -> bool {
    message.split_whitespace().collect::<String>().contains("\"reconnect\":false")
}

/// What is said of a field that only one algorithm has.
pub(super) fn of_algorithm(algorithm: Algorithm) -> String {
    format!("belongs to the algorithm {algorithm:?}; leave it out")
}

/// What goes with which algorithm.
fn of_algorithms() -> Vec<Rule> {
    let mut rules = Vec::new();
    for (fault, field, algorithm) in [
        (".seedFrom", "seedFrom", Algorithm::Rendezvous),
        (".envoyRing", "envoyRing", Algorithm::EnvoyRing),
        (".envoyMaglev", "envoyMaglev", Algorithm::EnvoyMaglev),
        (".haproxy", "haproxy", Algorithm::HAProxy),
    ] {
        let holds = format!("!has(self.{field}) || self.algorithm == '{algorithm:?}'");
        rules.push(Rule { fault, ..rule("spec.hashing", holds, &of_algorithm(algorithm)) });
    }
    // CEL has no loops over numbers: the divisors, up to the root of the greatest size, have two digits of base 32.
    let digits: Vec<u32> = (0..32).collect();
    let prime = format!(
        "{digits:?}.all(high, {digits:?}.all(low, 32 * high + low < 2 || 32 * high + low >= self || \
         self % (32 * high + low) != 0))"
    );
    rules.push(rule("spec.hashing.envoyMaglev.tableSize", prime, TABLE_SIZE));
    rules
}

/// What a notice must not say to the clients of its protocol.
fn of_notices() -> Vec<Rule> {
    let rule = |fault, holds, says: &str| Rule { at: "spec.notice", fault, holds, says: says.into() };
    let mut rules = Vec::new();
    for protocol in NoticeProtocol::ALL {
        if let Some(says) = fatal_code(protocol) {
            let within = |code: &RangeInclusive<u16>| {
                format!("(self.closeCode >= {} && self.closeCode <= {})", code.start(), code.end())
            };
            let fatal: Vec<_> = protocol.fatal_codes().iter().map(within).collect();
            let fatal = fatal.join(" || ");
            let holds = format!("self.protocol != '{protocol:?}' || !has(self.closeCode) || !({fatal})");
            rules.push(rule(".closeCode", holds, &says));
        }
        if let Some(says) = protocol.no_message() {
            let holds = format!("self.protocol != '{protocol:?}' || !has(self.message)");
            rules.push(rule(".message", holds, says));
        }
    }
    let stays = "self.protocol != 'ActionCable' || !has(self.message) || \
                 !self.message.matches('\"reconnect\"\\\\s*:\\\\s*false')";
    rules.push(rule(".message", stays.into(), STAY_AWAY));
    rules
}

/// A rule of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Where it stands: `spec.key.from[]` is an item of a list, the empty string the whole object.
    pub(super) at: &'static str,
    /// The field below it that is at fault; the empty string means itself.
    pub(super) fault: &'static str,
    /// When it holds, in CEL.
    pub(super) holds: String,
    /// What is said when it does not.
    pub(super) says: String,
}

// A token (RFC 9110, 5.6.2), as the names of headers and cookies are; \x27 is the quote that would end the text.
const TOKEN: &str = "^[!#$%&\\x27*+.^_`|~0-9A-Za-z-]+$";
const SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";
const DATA_KEY: &str = "^[-._a-zA-Z0-9]+$";

/// All rules.
pub(super) fn all() -> Vec<Rule> {
    // Any graphic character of ASCII but # / and ?.
    const ORIGIN_PATTERN: &str = "^([*]|[a-z][a-z0-9+.-]*://[\\x21\\x22\\x24-\\x2e\\x30-\\x3e\\x40-\\x7e]+)$";
    // A host of lower case, perhaps a port, and a path without a query.
    const ROUTABLE: &str = "^wss?://[a-z0-9{}.-]+(:[0-9]+)?(/[^?#]*)?$";
    const IS_CODE: &str = "(self >= 1000 && self <= 1003) || (self >= 1007 && self <= 1014) || \
                           (self >= 3000 && self <= 4999)";
    const SOURCES: &str = "[has(self.query), has(self.header), has(self.cookie), has(self.path), \
                           has(self.subprotocol), has(self.jwt)].filter(named, named).size() == 1";
    const IS_RATE: &str = "type(self) == int ? self >= 1 && self <= 100000 : \
                           self.matches(r'^[0-9]{1,3}([.][0-9]{1,3})?%$') && \
                           double(self.replace('%', '')) > 0.0 && double(self.replace('%', '')) <= 100.0";

    let mut rules = vec![
        // The field is in the words: of metadata the API server lets no rule name one.
        rule(
            "",
            format!(
                "size(self.metadata.name) <= {MAX_NAME} && \
                 self.metadata.name.matches(r'^[a-z]([-a-z0-9]*[a-z0-9])?$')"
            ),
            &format!("metadata.name {NAME}"),
        ),
        rule("spec.target.apiVersion", is("^([a-z0-9.-]+/)?v[0-9][a-z0-9]*$"), API_VERSION),
        rule("spec.target.kind", is("^[A-Z][A-Za-z0-9]*$"), KIND),
        rule("spec.target.name", is(SUBDOMAIN), TARGET),
        Rule {
            fault: ".key.from",
            ..rule("spec", "self.strategy == 'LeastConnections' || size(self.key.from) > 0".into(), NO_SOURCE)
        },
        rule("spec.key.from[]", SOURCES.into(), ONE_SOURCE),
        rule("spec.key.from[].query", "self != ''".into(), QUERY),
        rule("spec.key.from[].header", format!("{} && !self.lowerAscii().startsWith('wspool')", is(TOKEN)), HEADER),
        rule("spec.key.from[].cookie", is(TOKEN), COOKIE),
        rule("spec.key.from[].path", is("^(/[^/{}?#]*)*/[{]key[}](/[^/{}?#]*)*$"), PATH),
        rule("spec.key.from[].subprotocol", is(TOKEN), SUBPROTOCOL),
        rule("spec.key.from[].jwt", "self != ''".into(), JWT),
        Rule {
            fault: ".trust",
            ..rule("spec.key", "self.trust != 'Verified' || self.from.all(source, has(source.jwt))".into(), VERIFIED)
        },
        Rule {
            fault: ".hashing.algorithm",
            ..rule(
                "spec",
                "self.strategy != 'LeastConnections' || self.hashing.algorithm == 'Rendezvous'".into(),
                LEAST_CONNECTIONS,
            )
        },
        Rule {
            fault: ".limits.perKey",
            ..rule("spec", "self.strategy != 'LeastConnections' || self.limits.perKey == 0".into(), LEAST_CONNECTIONS)
        },
        rule("spec.hashing.seedFrom", "has(self.secretKeyRef) && !has(self.file)".into(), NO_FILE),
        rule("spec.hashing.seedFrom.secretKeyRef.name", is(SUBDOMAIN), SECRET),
        rule("spec.hashing.seedFrom.secretKeyRef.key", is(DATA_KEY), SECRET_KEY),
        rule("spec.rebalance.rate", IS_RATE.into(), RATE),
        rule("spec.notice.closeCode", IS_CODE.into(), CLOSE_CODE),
        rule("spec.notice.appCloseCode", IS_CODE.into(), CLOSE_CODE),
        rule("spec.notice.message", format!("size(bytes(self)) <= {MAX_MESSAGE}"), MESSAGE),
        rule("spec.notice.reason", format!("size(bytes(self)) <= {MAX_REASON}"), REASON),
        rule("spec.gateway.path", is("^/([^?#]*[^?#/])$"), GATEWAY_PATH),
        rule("spec.gateway.origins[]", is(ORIGIN_PATTERN), ORIGIN),
        rule("spec.gateway.url", is("^wss?://[^{}]*[{]slot[}][^{}]*$"), GATEWAY_URL),
        Rule { fault: ".routes", ..rule("spec", "!has(self.routes) || has(self.gateway)".into(), NO_GATEWAY) },
        Rule {
            fault: ".gateway.url",
            ..rule(
                "spec",
                format!("!has(self.routes) || !has(self.gateway) || self.gateway.url.matches(r'{ROUTABLE}')"),
                ROUTED_URL,
            )
        },
        Rule {
            fault: ".gateway.url",
            ..rule(
                "spec",
                "self.strategy != 'LeastConnections' || !has(self.routes) || !has(self.routes.httpRoute) || \
                 !has(self.gateway) || !self.gateway.url.matches('^wss?://[^/]*/.*[{]slot[}]')"
                    .into(),
                REWRITTEN_URL,
            )
        },
        rule("spec.routes", "has(self.ingress) != has(self.httpRoute)".into(), ONE_ROUTE),
        Rule {
            fault: ".minReplicas",
            ..rule("spec.autoscaling", "self.minReplicas <= self.maxReplicas".into(), FEWEST)
        },
        rule("spec.redis.urlFrom", "has(self.secretKeyRef) && !has(self.file)".into(), NO_FILE),
        rule("spec.redis.caFrom", "has(self.secretKeyRef) && !has(self.file)".into(), NO_FILE),
        rule("spec.redis.caFrom.secretKeyRef.key", is(DATA_KEY), SECRET_KEY),
        Rule {
            fault: ".caFrom.secretKeyRef.name",
            ..rule(
                "spec.redis",
                "!has(self.caFrom) || !has(self.caFrom.secretKeyRef) || !has(self.urlFrom.secretKeyRef) || \
                 self.caFrom.secretKeyRef.name == self.urlFrom.secretKeyRef.name"
                    .into(),
                REDIS_SECRET,
            )
        },
        rule(
            "spec.redis.prefix",
            "self != '' && !self.contains('{') && !self.contains('}') && size(bytes(self)) <= 256".into(),
            PREFIX,
        ),
        rule("spec.redis.urlFrom.secretKeyRef.name", is(SUBDOMAIN), SECRET),
        rule("spec.redis.urlFrom.secretKeyRef.key", is(DATA_KEY), SECRET_KEY),
    ];
    rules.extend(jwt());
    rules.extend(of_algorithms());
    rules.extend(of_notices());
    for span in [SETTLE, RETURN_TIMEOUT, MAX_PINNED, DRAIN_TIMEOUT, LEEWAY, IDLE] {
        rules.push(rule(span.field, is(duration::PATTERN), NOT_A_DURATION));
        rules.push(rule(span.field, span.cel(), &span.to_string()));
    }
    rules
}

/// What `key.jwt` must satisfy: [`Jwt::faults`](ring::settings::Jwt::faults) says the same.
fn jwt() -> Vec<Rule> {
    const READ: &str = "self.from.exists(source, has(source.jwt))";
    const PLACES: &str = "[has(self.header), has(self.query), has(self.cookie), has(self.subprotocol)]\
                          .filter(named, named).size() == 1";
    const URI: &str =
        r"^(https://[^/?#@\s]+|http://(localhost|127[.][0-9]+[.][0-9]+[.][0-9]+|\[::1\])(:[0-9]+)?)([/?#]\S*)?$";
    let at = "spec.key.jwt";
    let mut rules = vec![
        Rule { fault: ".jwt", ..rule("spec.key", format!("has(self.jwt) || !{READ}"), NO_JWT) },
        Rule { fault: ".jwt", ..rule("spec.key", format!("!has(self.jwt) || {READ}"), UNREAD_JWT) },
        rule("spec.key.jwt.issuer", "self != ''".into(), words::ISSUER),
        rule("spec.key.jwt.audiences[]", "self != ''".into(), words::AUDIENCE),
        rule("spec.key.jwt.algorithms", "size(self) > 0".into(), words::ALGORITHMS),
        Rule {
            fault: ".algorithms",
            ..rule(
                at,
                "!has(self.jwksUri) || !self.algorithms.exists(name, name.startsWith('HS'))".into(),
                words::SYMMETRIC,
            )
        },
        rule(at, "has(self.jwksUri) != has(self.jwksFrom)".into(), words::ONE_KEY_SET),
        rule("spec.key.jwt.jwksUri", is(URI), words::URI),
        Rule { fault: ".caFrom", ..rule(at, "!has(self.caFrom) || has(self.jwksUri)".into(), words::CA) },
        rule("spec.key.jwt.token", "size(self) > 0".into(), words::NO_PLACE),
        rule("spec.key.jwt.token[]", PLACES.into(), ONE_PLACE),
        rule("spec.key.jwt.token[].header", is(TOKEN), words::HEADER),
        rule("spec.key.jwt.token[].query", "self != ''".into(), words::QUERY),
        rule("spec.key.jwt.token[].cookie", is(TOKEN), words::COOKIE),
        rule("spec.key.jwt.token[].subprotocol", is(TOKEN), words::SUBPROTOCOL),
    ];
    for (field, fault, mounted, key) in [
        (
            "jwksFrom",
            ".spec.key.jwt.jwksFrom.secretKeyRef.name",
            "spec.key.jwt.jwksFrom",
            "spec.key.jwt.jwksFrom.secretKeyRef.key",
        ),
        (
            "caFrom",
            ".spec.key.jwt.caFrom.secretKeyRef.name",
            "spec.key.jwt.caFrom",
            "spec.key.jwt.caFrom.secretKeyRef.key",
        ),
    ] {
        let from = format!("self.spec.key.jwt.{field}");
        let named = format!(
            "!has(self.spec.key.jwt) || !has({from}) || !has({from}.secretKeyRef) || {from}.secretKeyRef.name == \
             self.metadata.name + '{JWKS_SUFFIX}'"
        );
        rules.push(Rule { fault, ..rule("", named, JWKS_SECRET) });
        rules.push(rule(mounted, "has(self.secretKeyRef) && !has(self.file)".into(), NO_FILE));
        rules.push(rule(key, format!("{} && !self.startsWith('..') && self != '.'", is(DATA_KEY)), words::SECRET_KEY));
    }
    rules
}

fn is(pattern: &str) -> String {
    format!("self.matches(r'{pattern}')")
}

fn rule(at: &'static str, holds: String, says: &str) -> Rule {
    Rule { at, fault: "", holds, says: says.into() }
}
