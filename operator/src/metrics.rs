//! The operator's metrics, taken from what it shows of its pools.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::rebalance::view::PoolView;

type PoolGauge = Family<PoolLabel, Gauge<u64, AtomicU64>>;

/// One gauge or counter for each figure of a pool.
#[derive(Debug, Default)]
pub struct Metrics {
    connections: PoolGauge,
    slots: PoolGauge,
    ready: PoolGauge,
    term: PoolGauge,
    epoch: PoolGauge,
    pending: PoolGauge,
    evicted: PoolGauge,
    returned: PoolGauge,
    lost: PoolGauge,
    in_flight: PoolGauge,
    rate: PoolGauge,
    condition: Family<ConditionLabel, Gauge<u64, AtomicU64>>,
    breaks: Family<BreakLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    namespace: Option<String>,
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabel {
    namespace: Option<String>,
    pool: String,
    condition: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BreakLabel {
    namespace: Option<String>,
    pool: String,
    cause: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (name, help, gauge) in [
            ("wspool_pool_connections", "Connections held in the pool", &metrics.connections),
            ("wspool_pool_slots", "Slots of the pool", &metrics.slots),
            ("wspool_pool_slots_ready", "Slots held by a ready member with the placement in force", &metrics.ready),
            ("wspool_placement_term", "Generation of the leader", &metrics.term),
            ("wspool_placement_epoch", "Version of the placement in force", &metrics.epoch),
            ("wspool_move_pending", "Connections that are still to move", &metrics.pending),
            ("wspool_move_evicted", "Connections evicted in this move, or in the last one", &metrics.evicted),
            ("wspool_move_returned", "Evicted connections seen at their new owner", &metrics.returned),
            ("wspool_move_lost", "Evicted connections not seen there in time", &metrics.lost),
            ("wspool_move_in_flight", "Evicted connections that are expected there", &metrics.in_flight),
            ("wspool_move_rate", "Evictions per second that are allowed now", &metrics.rate),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register("wspool_pool_condition", "Whether a condition holds", metrics.condition.clone());
        registry.register("wspool_breaks", "Connections ended by wspool, by cause", metrics.breaks.clone());
        metrics
    }

    /// Takes the figures of a pool over.
    pub fn observe(&self, view: &PoolView) {
        let label = PoolLabel { namespace: view.namespace.clone(), pool: view.name.clone() };
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        for (gauge, value) in [
            (&self.slots, count(view.slots.len())),
            (&self.ready, count(view.slots.iter().filter(|slot| slot.ready).count())),
            (&self.term, view.term),
            (&self.epoch, view.epoch),
            (&self.pending, view.moving.pending),
            (&self.evicted, view.moving.evicted),
            (&self.returned, view.moving.returned),
            (&self.lost, view.moving.lost),
            (&self.in_flight, view.moving.in_flight),
            (&self.rate, view.moving.rate),
        ] {
            gauge.get_or_create(&label).set(value);
        }
        // Whoever scales by it must not take a part of the connections for all of them.
        if view.counted {
            self.connections.get_or_create(&label).set(view.connections);
        }
        for condition in &view.conditions {
            let label = ConditionLabel {
                namespace: view.namespace.clone(),
                pool: view.name.clone(),
                condition: condition.kind,
            };
            self.condition.get_or_create(&label).set(u64::from(condition.status));
        }
        for (cause, count) in &view.breaks {
            // Sidecars count; what they counted is passed on.
            let label = BreakLabel { namespace: view.namespace.clone(), pool: view.name.clone(), cause: cause.name() };
            self.breaks.get_or_create(&label).inner().store(*count, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pool::{WebSocketPool, check};
    use crate::rebalance::Machine;

    #[test]
    fn a_pool_whose_connections_are_not_all_counted_has_no_figure_of_them() {
        let yaml = "{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {name: chat}, \
                    spec: {key: {from: [{query: user}]}}}";
        let pool = check::check(&WebSocketPool::from_yaml(yaml).unwrap(), None).unwrap();
        let mut view = Machine::new(pool, "pool-uid", None).view(Instant::now());
        for (counted, connections) in [(false, 0), (true, 1_200), (false, 400)] {
            (view.counted, view.connections) = (counted, connections);
            let mut registry = Registry::default();
            Metrics::register(&mut registry).observe(&view);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let figure = text.lines().find(|line| line.starts_with("wspool_pool_connections{"));
            let figure = figure.and_then(|line| line.rsplit(' ').next());
            assert_eq!(figure, counted.then_some("1200"));
            assert!(text.contains("wspool_pool_slots{"), "the others are there: {text}");
        }
    }
}
