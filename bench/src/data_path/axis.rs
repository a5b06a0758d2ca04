//! What is measured, and what should come out.

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Microseconds.
    Micros,
    /// Things in a second.
    PerSecond,
}

/// What a sidecar's figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most so much.
    AtMost(f64),
    /// Beside those of nginx and HAProxy, where there are goals: at most so many times theirs for what should be small, and at
    /// least so many times for what should be large.
    Times {
        /// Times nginx's.
        nginx: Option<f64>,
        /// Times HAProxy's.
        haproxy: Option<f64>,
    },
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// What is measured.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// The goal, if there is one.
    pub goal: Option<Goal>,
}

impl Axis {
    /// Whether more is better.
    pub fn more_is_better(&self) -> bool {
        self.unit == Unit::PerSecond
    }
}

const fn times(nginx: f64, haproxy: f64) -> Goal {
    Goal::Times { nginx: Some(nginx), haproxy: Some(haproxy) }
}

const fn axis(name: &'static str, unit: Unit, goal: Option<Goal>) -> Axis {
    Axis { name, unit, goal }
}

/// Resident memory of an idle connection.
pub const IDLE: Axis = axis("resident memory per idle connection", Unit::Bytes, Some(Goal::AtMost(1_600.0)));
/// What traffic leaves behind. A page is shared by some connections, and the allocator keeps some pages.
pub const AFTER: Axis = axis("more of it per connection, after 16 KiB on each", Unit::Bytes, Some(Goal::AtMost(64.0)));
/// Kernel memory of the whole chain.
pub const KERNEL: Axis = axis("kernel memory per connection, with client and app", Unit::Bytes, None);
/// A storm of clients.
pub const STORM: Axis = axis("handshakes per second in a storm", Unit::PerSecond, Some(times(1.1, 1.0)));
/// CPU time of a handshake.
pub const HANDSHAKE: Axis = axis("CPU per handshake", Unit::Micros, None);
/// CPU time of a small message, there and back, with few or many connections at once.
pub const SMALL: [(u32, Axis); 3] = [
    (1, axis("CPU per echo of 128 B, 1 connection", Unit::Micros, Some(times(1.05, 0.85)))),
    (16, axis("CPU per echo of 128 B, 16 connections", Unit::Micros, Some(times(1.05, 0.85)))),
    (1_000, axis("CPU per echo of 128 B, 1,000 connections", Unit::Micros, Some(times(1.05, 0.85)))),
];
/// Throughput of larger messages.
pub const MEDIUM: Axis = axis("echoes of 16 KiB per second, 16 connections", Unit::PerSecond, Some(times(3.3, 1.7)));
/// CPU time of larger messages.
pub const MEDIUM_CPU: Axis = axis("CPU per echo of 16 KiB", Unit::Micros, None);
/// Throughput of large messages.
pub const LARGE: Axis = axis("echoes of 1 MiB per second, 4 connections", Unit::PerSecond, None);
/// CPU time of large messages.
pub const LARGE_CPU: Axis = axis("CPU per echo of 1 MiB", Unit::Micros, None);
/// Latency of most.
pub const MEDIAN: Axis = axis("p50 of 10,000 echoes of 128 B per second", Unit::Micros, None);
/// Latency of nearly all.
pub const TAIL: Axis = axis(
    "p99 of 10,000 echoes of 128 B per second",
    Unit::Micros,
    Some(Goal::Times { nginx: Some(1.1), haproxy: None }),
);

/// All lines, in order.
pub fn all() -> Vec<Axis> {
    let [one, some, many] = SMALL.map(|(_, axis)| axis);
    vec![IDLE, AFTER, KERNEL, STORM, HANDSHAKE, one, some, many, MEDIUM, MEDIUM_CPU, LARGE, LARGE_CPU, MEDIAN, TAIL]
}
