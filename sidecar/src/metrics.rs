//! What Prometheus can ask a sidecar.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use ring::wire::{AppHealth, BreakCause, RedisHealth, Report};

/// Counters that the code raises, and gauges that are read off a [`Report`] at each scrape.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Handshakes that the app accepted.
    pub accepted: Counter,
    /// Dials to the app that failed, and handshakes it answered 5xx.
    pub failed: Counter,
    /// From the dial to the 101.
    handshake_seconds: Histogram,
    handshake_millis: AtomicU64,
    /// Handshakes whose clients went before there was an answer.
    pub abandoned: Counter,
    /// Handshakes that we refused.
    refused: Family<Reason, Counter>,
    /// Requests that we answered ourselves because of how they were written.
    bad_requests: Family<Reason, Counter>,
    gateway: Family<Reason, Counter>,
    placements: Family<PlacementLabel, Counter>,
    control_denied: Family<Reason, Counter>,
    /// Grants that were refused.
    pub grants_refused: Counter,
    /// Claims that a previous owner did not answer.
    pub claims_unanswered: Counter,
    /// Handshakes that went to a next-best slot.
    pub fallbacks: Counter,
    /// Handshakes that a peer answered with another address.
    pub redirects: Counter,
    /// Requests that said they were a peer's, and were not believed.
    pub false_peers: Counter,
    /// Bytes that apps wrote after a client had been told to go.
    pub discarded: Counter,
    evictions: Family<Outcome, Counter>,
    tokens_refused: Family<Reason, Counter>,
    jwks_fetches: Family<ResultLabel, Counter>,
    assertions: Family<ResultLabel, Counter>,
    trusted: Gauge,
    /// Tasks that serve the client port.
    pub tasks: Gauge,
    /// Accepts that failed, for want of file descriptors for example.
    pub accept_errors: Counter,
    connections: Family<Kind, Gauge>,
    moved: Gauge,
    pinned: Gauge,
    pinned_keys: Gauge,
    leaving: Gauge,
    returned: Counter,
    breaks: Family<Cause, Counter>,
    epoch: Gauge,
    term: Gauge,
    messages: Family<Outcome, Counter>,
    messages_dropped: Family<Reason, Counter>,
    held_messages: Gauge,
    held_bytes: Gauge,
    redis_up: Gauge,
    redis_channels: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PlacementLabel {
    result: PlacementResult,
}

/// What became of a placement.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[allow(missing_docs, reason = "the names are the explanation")]
pub enum PlacementResult {
    Accepted,
    Known,
    Malformed,
    OtherPool,
    OtherTarget,
    Older,
    Conflicting,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("wspool");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let handshake_seconds = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 8.0]);
        registry.register_with_unit(
            "handshake",
            "Time from the dial of the app to its 101",
            Unit::Seconds,
            handshake_seconds.clone(),
        );
        let discarded = Counter::default();
        let help = "What apps wrote after a client had been told to go";
        registry.register_with_unit("discarded", help, Unit::Bytes, discarded.clone());
        let held_bytes = Gauge::default();
        let help = "Size of the messages for clients on their way here";
        registry.register_with_unit("held_messages", help, Unit::Bytes, held_bytes.clone());
        Self {
            accepted: register!("handshakes_accepted", "Handshakes that the app accepted", Counter::default()),
            failed: register!("handshakes_failed", "Failed dials and handshakes answered 5xx", Counter::default()),
            handshake_seconds,
            handshake_millis: AtomicU64::new(0),
            abandoned: register!("handshakes_abandoned", "Handshakes whose clients left early", Counter::default()),
            refused: register!("handshakes_refused", "Handshakes that the sidecar refused", Family::default()),
            bad_requests: register!("bad_requests", "Requests refused for how they were written", Family::default()),
            gateway: register!(
                "gateway_answers",
                "Questions where to connect, by what came of them",
                Family::default()
            ),
            placements: register!("placements", "Placements offered, by result", Family::default()),
            control_denied: register!("control_denied", "Control requests without a valid token", Family::default()),
            grants_refused: register!("grants_refused", "Grants that were refused", Counter::default()),
            claims_unanswered: register!("claims_unanswered", "Claims without an answer", Counter::default()),
            fallbacks: register!("fallbacks", "Handshakes sent to a next-best slot", Counter::default()),
            redirects: register!("redirects", "Handshakes that a peer sent elsewhere", Counter::default()),
            false_peers: register!("false_peers", "Requests wrongly posing as a peer's", Counter::default()),
            discarded,
            evictions: register!("evictions", "Evictions that ended, by outcome", Family::default()),
            tokens_refused: register!("tokens_refused", "Handshakes refused for their token", Family::default()),
            jwks_fetches: register!("jwks_fetches", "Fetches of the keys of tokens, by result", Family::default()),
            assertions: register!("key_assertions", "What apps said of keys in their 101s", Family::default()),
            trusted: register!("trusted_connections", "Connections whose key proves who it is", Gauge::default()),
            tasks: register!("tasks", "Tasks that serve the client port, one for each connection", Gauge::default()),
            accept_errors: register!("accept_errors", "Accepts that failed", Counter::default()),
            connections: register!("connections", "Connections now", Family::default()),
            moved: register!("moved_connections", "Connections whose owner is elsewhere", Gauge::default()),
            pinned: register!("pinned_connections", "Connections that stay, for a pin", Gauge::default()),
            pinned_keys: register!("pinned_keys", "Keys that the app has pinned", Gauge::default()),
            leaving: register!("leaving_connections", "Connections being evicted", Gauge::default()),
            returned: register!("returned", "Connections of moved keys that arrived", Counter::default()),
            breaks: register!("breaks", "Connections ended by the sidecar, by cause", Family::default()),
            epoch: register!("placement_epoch", "The epoch of the placement in force", Gauge::default()),
            term: register!("placement_term", "The term of the placement in force", Gauge::default()),
            messages: register!(
                "messages",
                "Messages, once for each connection: written into its stream, held for it (counted where it is held first, and \
                 not where it is passed on to), returned (held, and taken by a connection that has arrived; again if that one \
                 goes before it is written)",
                Family::default()
            ),
            messages_dropped: register!(
                "messages_dropped",
                "Messages that no client got, by connections",
                Family::default()
            ),
            held_messages: register!("held_messages", "Messages for clients on their way here", Gauge::default()),
            redis_up: register!("redis_up", "Whether what is published in Redis is heard here", Gauge::default()),
            redis_channels: register!("redis_channels", "Channels in Redis that are listened to", Gauge::default()),
            held_bytes,
            registry,
        }
    }
}

impl Metrics {
    /// The app accepted a handshake.
    pub fn handshake(&self, took: Duration) {
        use std::sync::atomic::Ordering::Relaxed;
        self.accepted.inc();
        self.handshake_seconds.observe(took.as_secs_f64());
        self.handshake_millis.fetch_add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// We refused a handshake.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// We refused a request for how it was written.
    pub fn bad_request(&self, reason: &'static str) {
        self.bad_requests.get_or_create(&Reason { reason }).inc();
    }

    /// The gateway was asked.
    pub fn gateway(&self, reason: &'static str) {
        self.gateway.get_or_create(&Reason { reason }).inc();
    }

    /// We refused a handshake for its token.
    pub fn token_refused(&self, reason: &'static str) {
        self.tokens_refused.get_or_create(&Reason { reason }).inc();
    }

    /// The keys of tokens were fetched, or not.
    pub fn jwks_fetched(&self, result: &'static str) {
        self.jwks_fetches.get_or_create(&ResultLabel { result }).inc();
    }

    /// An app was to confirm a key.
    pub fn asserted(&self, result: &'static str) {
        self.assertions.get_or_create(&ResultLabel { result }).inc();
    }

    /// A placement was offered.
    pub fn placement(&self, result: PlacementResult) {
        self.placements.get_or_create(&PlacementLabel { result }).inc();
    }

    /// A control request was denied.
    pub fn denied(&self, reason: &'static str) {
        self.control_denied.get_or_create(&Reason { reason }).inc();
    }

    /// An eviction ended.
    pub fn evicted(&self, outcome: &'static str, discarded: u64) {
        self.evictions.get_or_create(&Outcome { outcome }).inc();
        self.discarded.inc_by(discarded);
    }

    /// A message was written to so many connections.
    pub fn messages_written(&self, connections: u32) {
        self.messages.get_or_create(&Outcome { outcome: "written" }).inc_by(connections.into());
    }

    /// A message is held for so many connections, by the first that holds it.
    pub fn messages_held(&self, connections: u32) {
        self.messages.get_or_create(&Outcome { outcome: "held" }).inc_by(connections.into());
    }

    /// So many channels are listened to.
    pub fn redis_channels(&self, channels: usize) {
        self.redis_channels.set(i64::try_from(channels).unwrap_or(i64::MAX));
    }

    /// So many held messages were taken by a connection that arrived.
    pub fn messages_returned(&self, messages: u64) {
        self.messages.get_or_create(&Outcome { outcome: "returned" }).inc_by(messages);
    }

    /// So many connections did not get a message.
    pub fn messages_dropped(&self, reason: &'static str, connections: u64) {
        self.messages_dropped.get_or_create(&Reason { reason }).inc_by(connections);
    }

    /// The evidence that the operator reads.
    pub fn app_health(&self, queued: u64) -> AppHealth {
        use std::sync::atomic::Ordering::Relaxed;
        AppHealth {
            accepted: self.accepted.get(),
            failed: self.failed.get(),
            handshake_ms: self.handshake_millis.load(Relaxed),
            queued,
        }
    }

    /// Everything, in `OpenMetrics` text.
    pub fn encode(&self, report: &Report) -> Result<String, std::fmt::Error> {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.connections.get_or_create(&Kind { kind: "held" }).set(gauge(report.connections));
        self.connections.get_or_create(&Kind { kind: "transit" }).set(gauge(report.transit));
        self.trusted.set(gauge(report.trusted));
        self.moved.set(gauge(report.moved));
        self.pinned.set(gauge(report.pinned));
        self.pinned_keys.set(gauge(report.pinned_keys));
        self.leaving.set(gauge(report.in_flight));
        self.held_messages.set(gauge(report.held_messages));
        self.redis_up.set(i64::from(report.redis == Some(RedisHealth::Up)));
        self.held_bytes.set(gauge(report.held_bytes));
        self.epoch.set(gauge(report.version.epoch));
        self.term.set(gauge(report.version.term));
        self.returned.inc_by(report.returned.saturating_sub(self.returned.get()));
        for cause in BreakCause::ALL {
            let counter = self.breaks.get_or_create(&Cause { cause: cause.name() });
            let total = report.breaks.get(&cause).copied().unwrap_or_default();
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
