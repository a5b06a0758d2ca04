//! The `WebSocketPool` resource as its users meet it: kubectl and a real API server beside `wspool-operator`, which reads
//! the same pools from files.
//!
//! One table says which pools are refused, and with which words. It is run against both, and it is `docs/pool-errors.md`.

use std::fmt::Write as _;
use std::path::PathBuf;

use futures_util::{StreamExt as _, stream};
use harness::control_plane::{Access, Namespace};
use harness::operator::Files;
use harness::until;
use serde_json::{Value, json};

/// How many kubectls run side by side.
const AT_ONCE: usize = 4;

/// A pool that is fine. The table's pools are this one with a change.
const POOL: &str = "{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {name: chat}, spec: {target: \
                    {apiVersion: apps/v1, kind: Deployment, name: chat}, port: 3000, key: {from: [{query: user}]}}}";

/// Refused by both with the same words: the change, the field that is named, what is said of it.
const REFUSED: &[(&str, &str, &str)] = &[
    ("metadata: {name: 1chat}", "metadata.name", NAME),
    ("metadata: {name: chat.eu}", "metadata.name", NAME),
    ("metadata: {name: a-name-of-one-and-fifty-letters-and-dashes-too-long}", "metadata.name", NAME),
    (
        "spec: {target: {apiVersion: apps/v1/x}}",
        "spec.target.apiVersion",
        "cannot be used; write a group and version, for example apps/v1",
    ),
    (
        "spec: {target: {kind: deployments.apps}}",
        "spec.target.kind",
        "cannot be used; write a kind, for example Deployment",
    ),
    ("spec: {target: {name: ''}}", "spec.target.name", "cannot be used; write the name of a workload"),
    ("spec: {key: {from: []}}", "spec.key.from", NO_SOURCE),
    ("spec: {key: null}", "spec.key.from", NO_SOURCE),
    ("spec: {key: {from: [{query: ''}]}}", "spec.key.from[0].query", "cannot be used; write a parameter's name"),
    ("spec: {key: {from: [{header: 'x user'}]}}", "spec.key.from[0].header", HEADER),
    ("spec: {key: {from: [{header: Wspool-Key}]}}", "spec.key.from[0].header", HEADER),
    ("spec: {key: {from: [{cookie: 'a=b'}]}}", "spec.key.from[0].cookie", "cannot be used; write a cookie's name"),
    ("spec: {key: {from: [{query: user}, {path: /rooms}]}}", "spec.key.from[1].path", PATH),
    ("spec: {key: {from: [{path: 'rooms/{key}'}]}}", "spec.key.from[0].path", PATH),
    ("spec: {key: {from: [{path: '/rooms/room-{key}'}]}}", "spec.key.from[0].path", PATH),
    ("spec: {key: {from: [{path: '/{key}/{key}'}]}}", "spec.key.from[0].path", PATH),
    ("spec: {key: {from: [{path: '/{user}/{key}'}]}}", "spec.key.from[0].path", PATH),
    ("spec: {key: {from: [{path: '/chat?room={key}'}]}}", "spec.key.from[0].path", PATH),
    (
        "spec: {key: {from: [{subprotocol: 'a, b'}]}}",
        "spec.key.from[0].subprotocol",
        "cannot be used; write the prefix of a subprotocol",
    ),
    ("spec: {key: {from: [{jwt: ''}]}}", "spec.key.from[0].jwt", "cannot be used; write a claim's name"),
    (
        "spec: {key: {from: [{jwt: sub}, {query: user}], trust: Verified}}",
        "spec.key.trust",
        "needs a token from every client; write only jwt sources",
    ),
    (
        "spec: {key: {from: [{jwt: sub}]}}",
        "spec.key.jwt",
        "says how a token is checked; write issuer, and jwksUri or jwksFrom, for the jwt sources of from",
    ),
    (
        "spec: {key: {jwt: {issuer: a, jwksUri: 'https://a'}}}",
        "spec.key.jwt",
        "has no part without a jwt source in from; leave it out",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: '', jwksUri: 'https://a'}}}",
        "spec.key.jwt.issuer",
        "names nobody; write the iss of your tokens",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', audiences: ['']}}}",
        "spec.key.jwt.audiences[0]",
        "names nobody; write an aud of your tokens",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', algorithms: []}}}",
        "spec.key.jwt.algorithms",
        "names no algorithm; write for example [RS256]",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', algorithms: [HS256]}}}",
        "spec.key.jwt.algorithms",
        "checks with a secret, which nobody publishes; write jwksFrom, or leave it out",
    ),
    ("spec: {key: {from: [{jwt: sub}], jwt: {issuer: a}}}", "spec.key.jwt", ONE_KEY_SET),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', jwksFrom: {secretKeyRef: {name: \
         chat-jwks, key: jwks.json}}}}}",
        "spec.key.jwt",
        ONE_KEY_SET,
    ),
    ("spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'http://idp.example.com'}}}", JWKS_URI_AT, JWKS_URI),
    ("spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'http://127.0.0.1@b/'}}}", JWKS_URI_AT, JWKS_URI),
    ("spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: idp.example.com}}}", JWKS_URI_AT, JWKS_URI),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksFrom: {secretKeyRef: {name: keys, key: jwks.json}}}}}",
        "spec.key.jwt.jwksFrom.secretKeyRef.name",
        "is not mounted in the pool's pods; write the pool's name with -jwks behind it",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksFrom: {secretKeyRef: {name: chat-jwks, key: ../a}}}}}",
        "spec.key.jwt.jwksFrom.secretKeyRef.key",
        "cannot be used; write a key of the Secret",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', caFrom: {secretKeyRef: {name: ca, key: \
         ca.crt}}}}}",
        "spec.key.jwt.caFrom.secretKeyRef.name",
        "is not mounted in the pool's pods; write the pool's name with -jwks behind it",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksFrom: {secretKeyRef: {name: chat-jwks, key: a}}, caFrom: \
         {secretKeyRef: {name: chat-jwks, key: b}}}}}",
        "spec.key.jwt.caFrom",
        "has no part without jwksUri; leave it out",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', leeway: 6m}}}",
        "spec.key.jwt.leeway",
        "is out of range; write 0s to 5m",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', token: []}}}",
        "spec.key.jwt.token",
        "names no place; write for example - header: Authorization",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', token: [{query: t}, {cookie: 'a b'}]}}}",
        "spec.key.jwt.token[1].cookie",
        "cannot be used; write a cookie's name",
    ),
    (
        "spec: {strategy: LeastConnections, hashing: {algorithm: HAProxy}}",
        "spec.hashing.algorithm",
        "has no part in the strategy LeastConnections; leave it out",
    ),
    (
        "spec: {strategy: LeastConnections, limits: {perKey: 2}}",
        "spec.limits.perKey",
        "has no part in the strategy LeastConnections; leave it out",
    ),
    (
        "spec: {hashing: {seedFrom: {secretKeyRef: {name: A_Secret, key: seed}}}}",
        "spec.hashing.seedFrom.secretKeyRef.name",
        "cannot be used; write the name of a Secret",
    ),
    (
        "spec: {hashing: {seedFrom: {secretKeyRef: {name: hashing, key: ''}}}}",
        "spec.hashing.seedFrom.secretKeyRef.key",
        "cannot be used; write a key of the Secret",
    ),
    (
        "spec: {hashing: {algorithm: NginxKetama, seedFrom: {secretKeyRef: {name: hashing, key: seed}}}}",
        "spec.hashing.seedFrom",
        "belongs to the algorithm Rendezvous; leave it out",
    ),
    (
        "spec: {hashing: {algorithm: EnvoyMaglev, envoyRing: {minimumRingSize: 4096}}}",
        "spec.hashing.envoyRing",
        "belongs to the algorithm EnvoyRing; leave it out",
    ),
    (
        "spec: {hashing: {algorithm: EnvoyRing, envoyMaglev: {tableSize: 65537}}}",
        "spec.hashing.envoyMaglev",
        "belongs to the algorithm EnvoyMaglev; leave it out",
    ),
    ("spec: {hashing: {haproxy: {}}}", "spec.hashing.haproxy", "belongs to the algorithm HAProxy; leave it out"),
    ("spec: {hashing: {algorithm: EnvoyMaglev, envoyMaglev: {tableSize: 65536}}}", TABLE_SIZE_AT, TABLE_SIZE),
    ("spec: {hashing: {algorithm: EnvoyMaglev, envoyMaglev: {tableSize: 1046529}}}", TABLE_SIZE_AT, TABLE_SIZE),
    ("spec: {rebalance: {rate: 0}}", "spec.rebalance.rate", RATE),
    ("spec: {rebalance: {rate: fast}}", "spec.rebalance.rate", RATE),
    ("spec: {rebalance: {rate: '50'}}", "spec.rebalance.rate", RATE),
    ("spec: {rebalance: {rate: 0%}}", "spec.rebalance.rate", RATE),
    ("spec: {rebalance: {rate: 101%}}", "spec.rebalance.rate", RATE),
    ("spec: {rebalance: {rate: 5000000000}}", "spec.rebalance.rate", RATE),
    ("spec: {rebalance: {settle: 61m}}", "spec.rebalance.settle", "is out of range; write 0s to 1h"),
    ("spec: {rebalance: {returnTimeout: 999ms}}", "spec.rebalance.returnTimeout", "is out of range; write 1s to 1h"),
    ("spec: {rebalance: {maxPinned: 24h1s}}", "spec.rebalance.maxPinned", "is out of range; write 0s, or 1s to 24h"),
    ("spec: {rebalance: {maxPinned: 1ms}}", "spec.rebalance.maxPinned", "is out of range; write 0s, or 1s to 24h"),
    ("spec: {drain: {timeout: 0s}}", "spec.drain.timeout", "is out of range; write 1s to 1h"),
    ("spec: {limits: {idle: 25h}}", "spec.limits.idle", "is out of range; write 0s, or 1s to 24h"),
    ("spec: {notice: {closeCode: 999}}", "spec.notice.closeCode", CLOSE_CODE),
    ("spec: {notice: {closeCode: 1005}}", "spec.notice.closeCode", CLOSE_CODE),
    ("spec: {notice: {closeCode: 1006}}", "spec.notice.closeCode", CLOSE_CODE),
    ("spec: {notice: {closeCode: 1015}}", "spec.notice.closeCode", CLOSE_CODE),
    ("spec: {notice: {closeCode: 5000}}", "spec.notice.closeCode", CLOSE_CODE),
    ("spec: {notice: {appCloseCode: 1004}}", "spec.notice.appCloseCode", CLOSE_CODE),
    (
        "spec: {notice: {protocol: Phoenix, closeCode: 1000}}",
        "spec.notice.closeCode",
        "keeps clients of Phoenix away for good; leave it out, which means 1012, or write none of 1000",
    ),
    (
        "spec: {notice: {protocol: GraphQLWS, closeCode: 4409}}",
        "spec.notice.closeCode",
        "keeps clients of GraphQLWS away for good; leave it out, which means 1012, or write none of 1002, 1003, 1007 to \
         1011, 4004, 4005, 4400, 4401, 4406, 4409, 4429, 4500",
    ),
    ("spec: {notice: {protocol: Discord, closeCode: 1001}}", "spec.notice.closeCode", DISCORD),
    ("spec: {notice: {protocol: Discord, closeCode: 4014}}", "spec.notice.closeCode", DISCORD),
    (
        "spec: {notice: {protocol: Centrifugo, closeCode: 3500}}",
        "spec.notice.closeCode",
        "keeps clients of Centrifugo away for good; leave it out, which means 1012, or write none of 1009, 3500 to 3999, \
         4500 to 4999",
    ),
    (
        "spec: {notice: {protocol: Pusher, closeCode: 4300}}",
        "spec.notice.closeCode",
        "keeps clients of Pusher away for good; leave it out, which means 4200, or write none of 4000 to 4099, 4300 to \
         4999",
    ),
    (
        "spec: {notice: {protocol: Htmx, closeCode: 1001}}",
        "spec.notice.closeCode",
        "keeps clients of Htmx away for good; leave it out, which means 1012, or write none of 1000 to 1003, 1007 to \
         1011, 1014, 3000 to 4999",
    ),
    (
        "spec: {notice: {protocol: SocketIO, message: '41'}}",
        "spec.notice.message",
        "is read as a packet by clients of SocketIO, which breaks them; leave it out",
    ),
    (
        "spec: {notice: {protocol: GraphQLWS, message: bye}}",
        "spec.notice.message",
        "makes clients of GraphQLWS close with 4400 and stay away; leave it out",
    ),
    (
        "spec: {notice: {protocol: SignalR, message: '{\"type\":7}'}}",
        "spec.notice.message",
        "is not needed: clients of SignalR get its own, in their encoding; leave it out",
    ),
    (
        "spec: {notice: {protocol: MQTT, message: bye}}",
        "spec.notice.message",
        "is text, which clients of MQTT refuse; leave it out: those of MQTT 5 get its own",
    ),
    (
        "spec: {notice: {protocol: ActionCable, message: '{\"type\":\"disconnect\", \"reconnect\": false}'}}",
        "spec.notice.message",
        "tells clients of ActionCable to stay away; leave it out, or write one with \"reconnect\":true",
    ),
    (
        "spec: {notice: {reason: 'éééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééé'}}",
        "spec.notice.reason",
        "does not fit into a close frame; write at most 123 bytes",
    ),
    (
        "spec: {gateway: {path: gateway, url: 'wss://s{slot}/'}}",
        "spec.gateway.path",
        "cannot be used; write a path without a slash at its end, for example /gateway",
    ),
    ("spec: {gateway: {path: /gateway, url: 'wss://chat.example.com/'}}", "spec.gateway.url", SLOT_URL),
    ("spec: {gateway: {path: /gateway, url: 'https://s{slot}.chat.example.com/'}}", "spec.gateway.url", SLOT_URL),
    (
        "spec: {routes: {ingress: {}}}",
        "spec.routes",
        "leads to the slots' addresses; write gateway too, for example gateway: {url: 'wss://s{slot}.chat.example.com/'}",
    ),
    (
        "spec: {gateway: {url: 'wss://chat.example.com/?s={slot}'}, routes: {ingress: {}}}",
        "spec.gateway.url",
        ROUTED_URL,
    ),
    ("spec: {gateway: {url: 'wss://S{slot}.example.com/'}, routes: {ingress: {}}}", "spec.gateway.url", ROUTED_URL),
    ("spec: {gateway: {url: 'wss://s{slot}:/'}, routes: {ingress: {}}}", "spec.gateway.url", ROUTED_URL),
    (
        "spec: {strategy: LeastConnections, gateway: {url: 'wss://example.com/{slot}'}, routes: {httpRoute: {parentRefs: [{name: front}]}}}",
        "spec.gateway.url",
        "loses its {slot} in an HTTPRoute, and under LeastConnections servers know their addresses by it; write {slot} into the host, for example wss://s{slot}.chat.example.com/",
    ),
    (
        "spec: {gateway: {url: 'wss://s{slot}.chat.example.com/', origins: ['https://chat.example.com/']}}",
        "spec.gateway.origins[0]",
        "is no origin; write for example https://chat.example.com, or *",
    ),
    (
        "spec: {autoscaling: {minReplicas: 3, maxReplicas: 2, connectionsPerPod: 1000}}",
        "spec.autoscaling.minReplicas",
        "is more than maxReplicas; write at most as many",
    ),
    (
        "spec: {redis: {urlFrom: {secretKeyRef: {name: '', key: url}}}}",
        "spec.redis.urlFrom.secretKeyRef.name",
        "cannot be used; write the name of a Secret",
    ),
    (
        "spec: {redis: {urlFrom: {secretKeyRef: {name: redis, key: a/b}}}}",
        "spec.redis.urlFrom.secretKeyRef.key",
        "cannot be used; write a key of the Secret",
    ),
    (
        "spec: {redis: {urlFrom: {secretKeyRef: {name: redis, key: url}}, caFrom: {secretKeyRef: {name: ca, key: a}}}}",
        "spec.redis.caFrom.secretKeyRef.name",
        "is another Secret than that of urlFrom; write the same one",
    ),
    (
        "spec: {redis: {urlFrom: {secretKeyRef: {name: redis, key: url}}, prefix: '{chat}:'}}",
        "spec.redis.prefix",
        "cannot be used; write 1 to 256 bytes without braces, for example wspool:prod/chat:",
    ),
];

const NAME: &str = "is not a name; write 1 to 50 of a-z, 0-9 and -, a letter first and no - at the end";
const HEADER: &str =
    "cannot be used; write a header's name, and none that begins with wspool: clients' own are stripped";
const PATH: &str = "cannot be used; write a path with one segment {key}, for example /rooms/{key}";
const ONE_KEY_SET: &str = "does not have one key set; write either jwksUri or jwksFrom";
const NO_SOURCE: &str =
    "names no source; write for example - query: user, or take the strategy LeastConnections, which needs no key";
const JWKS_URI_AT: &str = "spec.key.jwt.jwksUri";
const JWKS_URI: &str = "cannot be used; write an https address, for example https://idp.example.com/jwks.json";
const TABLE_SIZE_AT: &str = "spec.hashing.envoyMaglev.tableSize";
const TABLE_SIZE: &str = "is not a prime number; write for example 65537";
const RATE: &str = "is not a rate; write 1 to 100000 connections per second, or 0.001% to 100% of them per minute";
const CLOSE_CODE: &str = "cannot stand in a close frame; write 1000 to 1003, 1007 to 1014, or 3000 to 4999";
const DISCORD: &str = "keeps clients of Discord away for good; leave it out, which means 4000, or write none of 1000, 1001, 4004, 4010 to 4014";
const SLOT_URL: &str =
    "cannot be used; write an address with one {slot} in it, for example wss://s{slot}.chat.example.com/";
const ROUTED_URL: &str = "cannot be routed; write {slot} into the host or the path, and no query, for example wss://s{slot}.chat.example.com/";

/// Refused by both, each in its own words: the change, what kubectl says, what the operator says.
const REFUSED_IN_OTHER_WORDS: &[(&str, &str, &str)] = &[
    ("spec: {colour: blue}", "unknown field \"spec.colour\"", "unknown field `colour`"),
    (
        "spec: {rebalance: {ratePerSecond: 5}}",
        "unknown field \"spec.rebalance.ratePerSecond\"",
        "unknown field `ratePerSecond`",
    ),
    (
        "spec: {strategy: RoundRobin}",
        "spec.strategy: Unsupported value: \"RoundRobin\": supported values: \"ConsistentHash\", \"LeastConnections\"",
        "unknown variant `RoundRobin`, expected `ConsistentHash` or `LeastConnections`",
    ),
    (
        "spec: {rebalance: {settle: 5 s}}",
        "spec.rebalance.settle: Invalid value: \"5 s\": is not a duration; write for example 500ms, 5s, 1m30s or 1h",
        "spec.rebalance: \"5 s\" is not a duration; write for example 500ms, 5s, 1m30s or 1h",
    ),
    (
        "spec: {drain: {timeout: 60}}",
        "spec.drain.timeout in body must be of type string: \"integer\"",
        "spec.drain: \"60\" is not a duration; write for example 500ms, 5s, 1m30s or 1h",
    ),
    (
        "spec: {key: {from: [{query: user, header: x-user}]}}",
        "spec.key.from[0]: Invalid value: is not one source; write one of query, header, cookie, path, subprotocol and jwt",
        "spec.key.from[0]: invalid value: map, expected map with a single key",
    ),
    (
        "spec: {key: {from: [{}]}}",
        "spec.key.from[0]: Invalid value: is not one source; write one of query, header, cookie, path, subprotocol and jwt",
        "spec.key.from[0]: invalid value: map, expected map with a single key",
    ),
    (
        "spec: {gateway: {url: 'wss://s{slot}.example.com/'}, routes: {ingress: {}, httpRoute: {parentRefs: [{name: a}]}}}",
        "spec.routes: Invalid value: is not one way; write one of ingress and httpRoute",
        "spec.routes: invalid value: map, expected map with a single key",
    ),
    (
        "spec: {gateway: {url: 'wss://s{slot}.example.com/'}, routes: {httpRoute: {parentRefs: []}}}",
        "spec.routes.httpRoute.parentRefs: Invalid value: 0: spec.routes.httpRoute.parentRefs in body should have at least 1 items",
        "spec.routes.httpRoute.parentRefs: 0 Gateways are not 1 to 32 Gateways; write for example - name: front",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {jwksUri: 'https://a'}}}",
        "spec.key.jwt.issuer: Required value",
        "spec.key.jwt: missing field `issuer`",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', algorithms: [none]}}}",
        "spec.key.jwt.algorithms[0]: Unsupported value: \"none\": supported values: \"RS256\", \"RS384\"",
        "unknown variant `none`, expected one of `RS256`, `RS384`",
    ),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'https://a', token: [{body: t}]}}}",
        "unknown field \"spec.key.jwt.token[0].body\"",
        "unknown variant `body`, expected one of `header`, `query`, `cookie`, `subprotocol`",
    ),
    (
        "spec: {key: {from: [{query: a}, {query: b}, {query: c}, {query: d}, {query: e}, {query: f}, {query: g}, \
         {query: h}, {query: i}]}}",
        "spec.key.from: Too many: 9: must have at most 8 items",
        "spec.key.from: 9 sources are too many; write at most 8",
    ),
    (
        "spec: {port: 0}",
        "spec.port in body should be greater than or equal to 1",
        "spec.port: 0 is out of range; write 1 to 65535",
    ),
    (
        "spec: {port: http}",
        "spec.port in body must be of type integer: \"string\"",
        "spec.port: invalid type: string \"http\", expected u16",
    ),
    (
        "spec: {replicas: 1001}",
        "spec.replicas in body should be less than or equal to 1000",
        "spec.replicas: 1001 is out of range; write 0 to 1000",
    ),
    (
        "spec: {rebalance: {maxInFlight: 0}}",
        "spec.rebalance.maxInFlight in body should be greater than or equal to 1",
        "spec.rebalance.maxInFlight: 0 is out of range; write 1 to 1000000",
    ),
    (
        "spec: {rebalance: {minReturned: 101}}",
        "spec.rebalance.minReturned in body should be less than or equal to 100",
        "spec.rebalance.minReturned: 101 is out of range; write 0 to 100",
    ),
    (
        "spec: {hashing: {algorithm: EnvoyMaglev, envoyMaglev: {tableSize: 5000011}}}",
        "spec.hashing.envoyMaglev.tableSize in body should be less than or equal to 1048573",
        "spec.hashing.envoyMaglev.tableSize: 5000011 is out of range; write 2 to 1048573",
    ),
    (
        "spec: {hashing: {algorithm: EnvoyRing, envoyRing: {minimumRingSize: 0}}}",
        "spec.hashing.envoyRing.minimumRingSize in body should be greater than or equal to 1",
        "spec.hashing.envoyRing.minimumRingSize: 0 is out of range; write 1 to 131072",
    ),
    (
        "spec: {hashing: {algorithm: HAProxy, haproxy: {weight: 257}}}",
        "spec.hashing.haproxy.weight in body should be less than or equal to 256",
        "spec.hashing.haproxy.weight: 257 is out of range; write 1 to 256",
    ),
    (
        "spec: {rebalance: {tolerance: 101}}",
        "spec.rebalance.tolerance in body should be less than or equal to 100",
        "spec.rebalance.tolerance: 101 is out of range; write 0 to 100",
    ),
    (
        "spec: {limits: {connections: 10000001}}",
        "spec.limits.connections in body should be less than or equal to 10000000",
        "spec.limits.connections: 10000001 is out of range; write 0 to 10000000",
    ),
    (
        "spec: {router: {replicas: -1}}",
        "spec.router.replicas in body should be greater than or equal to 0",
        "spec.router.replicas: invalid type: integer `-1`, expected u32",
    ),
    (
        "spec: {autoscaling: {minReplicas: 0, maxReplicas: 2, connectionsPerPod: 1000}}",
        "spec.autoscaling.minReplicas in body should be greater than or equal to 1",
        "spec.autoscaling.minReplicas: 0 is out of range; write 1 to 1000",
    ),
];

/// Refused by the API server alone: the change, and what kubectl says.
const REFUSED_IN_A_CLUSTER: &[(&str, &str)] = &[
    ("spec: {target: null}", "spec.target: Required value"),
    ("spec: {port: null}", "spec.port: Required value"),
    (
        "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksFrom: {file: jwks.json}}}}",
        "spec.key.jwt.jwksFrom: Invalid value: is not for a cluster; write secretKeyRef: {name, key}",
    ),
    (
        "spec: {hashing: {seedFrom: {file: seed.hex}}}",
        "spec.hashing.seedFrom: Invalid value: is not for a cluster; write secretKeyRef: {name, key}",
    ),
];

/// Accepted by the API server, and refused by the operator, which says so in the pool's conditions.
const NOT_BUILT: &[(&str, &str)] = &[(
    "spec: {hashing: {seedFrom: {secretKeyRef: {name: seed, key: hex}}}}",
    "spec.hashing.seedFrom.secretKeyRef: seed is not built yet; write file: path",
)];

/// Accepted by both: as far as every field goes, and nulls.
const ACCEPTED: &[&str] = &[
    "metadata: {name: c}",
    "spec: {redis: {urlFrom: {secretKeyRef: {name: redis, key: url}}, caFrom: {secretKeyRef: {name: redis, key: ca}}}}",
    "metadata: {name: a-name-of-fifty-letters-and-dashes-is-short-enough}",
    "spec: {replicas: 1000, port: 65535, target: {apiVersion: v1, kind: ReplicationController, name: chat.v2}}",
    "spec: {key: {from: [{query: ü}, {header: X-User}, {cookie: __Host-id}, {path: '/*/{key}'}, {path: '/{key}/'}]}}",
    "spec: {hashing: {algorithm: NginxKetama}}",
    "spec: {hashing: {algorithm: IngressNginx, envoyRing: null}}",
    "spec: {hashing: {algorithm: EnvoyRing, envoyRing: {minimumRingSize: 131072}}}",
    "spec: {hashing: {algorithm: EnvoyMaglev, envoyMaglev: {tableSize: 1048573}}}",
    "spec: {hashing: {algorithm: EnvoyMaglev, envoyMaglev: {tableSize: 2}}}",
    "spec: {hashing: {algorithm: HAProxy, haproxy: {hashKey: AddrPort, weight: 256}}}",
    "spec: {gateway: {url: 'wss://s{slot}.chat.example.com/'}}",
    "spec: {gateway: {path: /a/b, url: 'ws://chat.example.com/{slot}/ws', origins: ['*', 'https://[::1]:8443', 'capacitor://localhost'], perClient: 0, trustedHops: 8}}",
    "spec: {gateway: {url: 'wss://s{slot}.example.com:8443/ws'}, routes: {ingress: {className: nginx, annotations: {a: b}, tlsSecretName: chat}}}",
    "spec: {strategy: LeastConnections, gateway: {url: 'ws://s{slot}.example.com/ws'}, routes: {httpRoute: {parentRefs: [{name: front}]}}}",
    "spec: {gateway: {url: 'ws://example.com/{slot}'}, routes: {httpRoute: {parentRefs: [{name: front, namespace: infra, sectionName: wss}]}}}",
    "spec: {key: {from: [{subprotocol: user.}, {query: user}], missing: Reject, trust: AppAsserted}}",
    "spec: {key: {from: [{jwt: sub}], trust: Verified, jwt: {issuer: 'https://idp.example.com/', audiences: [chat], \
     jwksUri: 'https://idp.example.com/jwks.json', caFrom: {secretKeyRef: {name: chat-jwks, key: ca.crt}}}}}",
    "spec: {key: {from: [{jwt: 'https://a/b'}, {path: '/{key}'}], jwt: {issuer: a, algorithms: [HS256, EdDSA], leeway: 5m, \
     jwksFrom: {secretKeyRef: {name: chat-jwks, key: jwks.json}}, token: [{header: X-Token}, {query: ü}, {cookie: t}, \
     {subprotocol: bearer.}]}}}",
    "spec: {key: {from: [{jwt: sub}], jwt: {issuer: a, jwksUri: 'http://[::1]:8080/jwks.json?x=y'}}}",
    "spec: {strategy: LeastConnections, key: null}",
    "spec: {strategy: LeastConnections, rebalance: {tolerance: 0}}",
    "spec: {rebalance: {rate: 0.001%, settle: 0s, returnTimeout: 1000ms, maxInFlight: 1, minReturned: 0, maxPinned: 0s}}",
    "spec: {rebalance: {rate: 100%, settle: 0.5h30m, returnTimeout: 1h, maxInFlight: 1000000, minReturned: 100, maxPinned: 24h}}",
    "spec: {rebalance: {rate: 100000, mode: Paused, unit: Connection}, ownerUnreachable: Reject}",
    "spec: {notice: {closeCode: 4999, appCloseCode: 1000, message: '{\"type\": \"reconnect\"}', reason: 'ééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééé'}}",
    "spec: {notice: {protocol: Discord, closeCode: 4200, message: '{\"op\":7}'}}",
    "spec: {notice: {protocol: ActionCable, message: '{\"type\":\"disconnect\",\"reconnect\":true}'}}",
    "spec: {notice: {protocol: Centrifugo, closeCode: 3499}}",
    "spec: {limits: {connections: 0, handshakesPerSecond: 1000000, perKey: 10000000, idle: 24h}, drain: {timeout: 1h}}",
    "spec: {autoscaling: {minReplicas: 2, maxReplicas: 20, connectionsPerPod: 1000}, replicas: 2}",
    "spec: {rebalance: {rate: null, settle: null}, notice: {message: null}, gateway: null, redis: null, drain: null}",
];

/// The pool with a change.
fn pool(change: &str) -> String {
    let read = |text: &str| -> Value { serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")) };
    let (mut pool, change) = (read(POOL), read(change));
    json_patch::merge(&mut pool, &change);
    pool.to_string()
}

/// The pool with a change that has nulls in it.
fn pool_with_nulls(change: &str) -> String {
    fn put(into: &mut Value, change: Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(fields)) => {
                fields.into_iter().for_each(|(name, value)| put(into.entry(name).or_insert_with(|| json!({})), value));
            }
            (into, value) => *into = value,
        }
    }
    let mut pool: Value = serde_yaml::from_str(POOL).expect("YAML");
    put(&mut pool, serde_yaml::from_str(change).expect("YAML"));
    pool.to_string()
}

/// What the operator says of a pool in a file.
fn operator(pool: &str) -> Result<(), String> {
    let files = Files::new("");
    files.write_members("[{name: server, address: '127.0.0.1:8000', control: '127.0.0.1:8001'}]\n");
    std::fs::write(files.path("pool.yaml"), pool).expect("a file in a temporary folder");
    let output = files.run(&["owner", "--pool", "pool.yaml", "--members", "members.yaml"], String::new());
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A namespace in a cluster that has the resource.
async fn namespace(purpose: &str) -> Namespace {
    let namespace = Namespace::create(&Access::shared(), purpose).await;
    let crd = repository("crds/websocketpools.wspool.dev.yaml");
    let crd = std::fs::read_to_string(&crd).unwrap_or_else(|error| panic!("{}: {error}", crd.display()));
    let apply = ["apply", "--server-side", "--force-conflicts", "--warnings-as-errors", "--filename=-"];
    namespace.kubectl(&apply, &crd).await.expect("the CRD is accepted without a warning");
    until("the API server checks pools", async || {
        namespace.kubectl(&["create", "--dry-run=server", "--filename=-"], &pool("{}")).await.map(drop)
    })
    .await;
    namespace
}

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What is wrong with an answer that should have been a refusal with these words.
fn not_refused<T>(change: &str, answer: Result<T, String>, words: &[&str]) -> Option<String> {
    match answer {
        Ok(_) => Some(format!("{change} is accepted")),
        Err(refusal) if words.iter().all(|words| refusal.contains(words)) => None,
        Err(refusal) => Some(format!("{change} is refused with other words: {refusal}")),
    }
}

#[test]
fn the_operator_refuses_every_pool_of_the_table_with_its_words() {
    let same = REFUSED.iter().map(|&(change, field, words)| (change, vec![field, words]));
    let other = REFUSED_IN_OTHER_WORDS.iter().map(|&(change, _, words)| (change, vec![words]));
    let built = NOT_BUILT.iter().map(|&(change, words)| (change, vec![words]));
    let rows = same.chain(other).chain(built);
    let wrong: Vec<_> =
        rows.filter_map(|(change, words)| not_refused(change, operator(&pool(change)), &words)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn kubectl_apply_refuses_every_pool_of_the_table_with_its_words() {
    let same = REFUSED.iter().map(|&(change, field, words)| (change, vec![field, words]));
    let other = REFUSED_IN_OTHER_WORDS.iter().map(|&(change, words, _)| (change, vec![words]));
    let cluster = REFUSED_IN_A_CLUSTER.iter().map(|&(change, words)| (change, vec![words]));
    let namespace = namespace("refused").await;
    let answers = stream::iter(same.chain(other).chain(cluster)).map(async |(change, words)| {
        let answer = namespace.apply(&pool(change)).await;
        not_refused(change, answer, &words)
    });
    let wrong: Vec<_> = answers.buffered(AT_ONCE).filter_map(async |wrong| wrong).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_operator_accepts_what_is_as_it_should_be() {
    for change in ACCEPTED {
        assert_eq!(operator(&pool(change)), Ok(()), "{change}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn what_the_api_server_stores_the_operator_can_read() {
    let namespace = namespace("accepted").await;
    let built = NOT_BUILT.iter().map(|&(change, words)| (pool(change), Some(words)));
    let rows = ACCEPTED.iter().map(|change| (pool_with_nulls(change), None)).chain(built);
    let stored = stream::iter(rows).map(async |(pool, unbuilt)| {
        let store = ["create", "--dry-run=server", "--output=json", "--filename=-"];
        let stored = namespace.kubectl(&store, &pool).await.unwrap_or_else(|error| panic!("{pool}: {error}"));
        (operator(&stored), unbuilt)
    });
    let answers: Vec<_> = stored.buffered(AT_ONCE).collect().await;
    for (answer, unbuilt) in answers {
        match (answer, unbuilt) {
            (answer, None) => assert_eq!(answer, Ok(())),
            (Err(refusal), Some(words)) => assert!(refusal.contains(words), "{refusal}"),
            (Ok(()), Some(words)) => panic!("the operator does not say: {words}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn kubectl_scale_writes_the_replicas_of_a_pool() {
    let namespace = namespace("scale").await;
    namespace.apply(&pool("spec: {replicas: 2}")).await.expect("a good pool");
    namespace.kubectl(&["scale", "wsp/chat", "--current-replicas=2", "--replicas=5"], "").await.expect("it is scaled");
    let replicas = namespace.kubectl(&["get", "wsp/chat", "--output=jsonpath={.spec.replicas}"], "").await;
    assert_eq!(replicas.as_deref(), Ok("5"));

    let refusal = namespace.kubectl(&["scale", "wsp/chat", "--replicas=1001"], "").await.expect_err("too many");
    assert!(refusal.contains("spec.replicas"), "{refusal}");
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn kubectl_get_shows_the_status_and_an_autoscaler_finds_the_pods() {
    let namespace = namespace("columns").await;
    namespace.apply(&pool("spec: {replicas: 2}")).await.expect("a good pool");
    let status = json!({"status": {
        "observedGeneration": 1, "slots": 2, "replicas": 2, "selector": "app=chat", "connections": 1000, "epoch": 7,
        "move": {"pending": 42},
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Stable", "message": "",
             "lastTransitionTime": "2030-01-01T00:00:00Z"},
        ],
    }});
    let patch = ["patch", "wsp/chat", "--subresource=status", "--type=merge", "--patch", &status.to_string()];
    namespace.kubectl(&patch, "").await.expect("a status");

    let table = namespace.kubectl(&["get", "websocketpools"], "").await.expect("a table");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "SLOTS", "READY", "CONNECTIONS", "EPOCH", "MOVING", "AGE"]);
    assert_eq!(rows[1][..6], ["chat", "2", "True", "1000", "7", "42"]);

    let subresource = format!("/apis/wspool.dev/v1alpha1/namespaces/{}/websocketpools/chat/scale", namespace.name());
    let scale = namespace.kubectl(&["get", "--raw", &subresource], "").await.expect("the scale subresource");
    let scale: Value = serde_json::from_str(&scale).expect("JSON");
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=chat"}));

    // Two writers of conditions do not undo each other's.
    let other = json!({
        "apiVersion": "wspool.dev/v1alpha1", "kind": "WebSocketPool", "metadata": {"name": "chat"},
        "status": {"conditions": [
            {"type": "Degraded", "status": "False", "reason": "AsPlanned", "message": "",
             "lastTransitionTime": "2030-01-01T00:00:00Z"},
        ]},
    });
    let apply = ["apply", "--server-side", "--subresource=status", "--field-manager=other", "--filename=-"];
    namespace.kubectl(&apply, &other.to_string()).await.expect("another condition");
    let types = ["get", "wsp/chat", "--output=jsonpath={.status.conditions[*].type}"];
    assert_eq!(namespace.kubectl(&types, "").await.as_deref(), Ok("Ready Degraded"));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn kubectl_explain_says_what_a_field_is_for_with_its_unit_and_default() {
    let namespace = namespace("explained").await;
    let explained = until("kubectl explains the resource", async || {
        namespace.kubectl(&["explain", "wsp.spec.rebalance"], "").await
    })
    .await;
    let said = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "enum: Automatic, DryRun, Paused",
        "in the whole pool: 1 to 100000 per second, or a share of its connections per minute, 0.001% to 100%. Default: 50.",
        "counts as lost, 1s to 1h. Default: 1m.",
    ] {
        assert!(said.contains(words), "not {words:?} in\n{explained}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_example_is_accepted() {
    let namespace = namespace("example").await;
    let example = std::fs::read_to_string(repository("examples/kubernetes.yaml")).expect("the example");
    let apply = ["apply", "--dry-run=server", "--warnings-as-errors", "--filename=-"];
    let answer = namespace.kubectl(&apply, &example).await.expect("it is accepted");
    assert!(
        answer.contains("websocketpool.wspool.dev/chat created") && answer.contains("deployment.apps/chat created")
    );
}

#[test]
fn the_page_of_refusals_is_the_table() {
    let path = repository("docs/pool-errors.md");
    let page = page();
    if std::env::var_os("WSPOOL_GENERATE").is_some() {
        std::fs::write(&path, &page).expect("a file in the repository");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "{} is stale: run `make generate`", path.display());
}

fn page() -> String {
    let mut page = String::from(
        "<!-- Generated from tests/tests/kubernetes_crd.rs by `make generate`, and tested there. -->\n\
         # What is wrong with a pool\n\n\
         `kubectl apply` refuses a pool that cannot work, all faults at once, each with its field. `wspool-operator\n\
         standalone`, `owner` and `plan` refuse the same pools in files with the same words.\n\n\
         | field | what is said of it | for example |\n|---|---|---|\n",
    );
    let code = |text: &str| format!("`{}`", text.replace('|', "\\|"));
    let last = |field: &str| field.rsplit('.').next().map(str::to_owned);
    for alike in REFUSED.chunk_by(|(_, a, words), (_, b, others)| words == others && last(a) == last(b)) {
        let changes: Vec<_> = alike.iter().map(|(change, ..)| code(change)).collect();
        let (_, field, words) = alike[0];
        writeln!(page, "| {field} | {words} | {} |", changes.join("<br>")).expect("memory");
    }
    page.push_str(
        "\nWhat does not fit the resource's shape, the API server and the operator's parser say in their own words. Where a\n\
         type is wrong they may check the rest only once it is right:\n\n\
         | a pool with | kubectl | the operator |\n|---|---|---|\n",
    );
    for (change, kubectl, operator) in REFUSED_IN_OTHER_WORDS {
        writeln!(page, "| {} | {kubectl} | {operator} |", code(change)).expect("memory");
    }
    page.push_str("\nOnly a cluster refuses:\n\n| a pool with | kubectl |\n|---|---|\n");
    for (change, words) in REFUSED_IN_A_CLUSTER {
        writeln!(page, "| {} | {words} |", code(change)).expect("memory");
    }
    page.push_str(
        "\nThe resource has fields whose work is still to come. The API server accepts them; the operator leaves such a pool\n\
         alone and says why:\n\n| a pool with | the operator |\n|---|---|\n",
    );
    for (change, words) in NOT_BUILT {
        writeln!(page, "| {} | {} |", code(change), words.replace('\n', "<br>")).expect("memory");
    }
    page
}
