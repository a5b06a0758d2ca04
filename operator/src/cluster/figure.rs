//! How many connections a pool has, for those who scale by it.
//!
//! Every replica reads it from the pool's status, which the leader writes, so that all of them say the same. A status may be
//! old: the leader may have died, or the API server may have been away. So the count stands there with the time at which it
//! was whole, and beyond [`MAX_AGE`] by the reader's clock it is no figure. The time of the write (`managedFields`) would not
//! do: a status is also written while a sidecar is silent.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::pool::WebSocketPool;

/// The oldest figure that is served. A figure that somebody scales by is written every ten seconds at the latest.
pub const MAX_AGE: Duration = Duration::from_secs(30);

/// A count, and when it was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Connections held in the pool.
    pub connections: u64,
    /// When.
    pub at: Timestamp,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFigure {
    /// Not counted.
    #[error(
        "its connections have not been counted: it has no servers, or not every sidecar answers (see the pool's conditions)"
    )]
    NotCounted,
    /// Too old, or of a clock that is wrong.
    #[error(
        "its connections were last counted at {0}, and that is not current: only pools that an autoscaler scales are counted \
         all the time; if one does, see whether an operator leads and clocks agree"
    )]
    NotCurrent(Timestamp),
}

/// A pool's figure by its status.
pub fn of(pool: &WebSocketPool, now: Timestamp) -> Result<Figure, NoFigure> {
    let status = pool.status.as_ref().ok_or(NoFigure::NotCounted)?;
    let at = status.connections_at.as_ref().ok_or(NoFigure::NotCounted)?.0;
    if now.duration_since(at).unsigned_abs() > MAX_AGE {
        return Err(NoFigure::NotCurrent(at));
    }
    Ok(Figure { connections: status.connections, at })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn pool(name: &str, at: Option<Timestamp>) -> WebSocketPool {
        let pool = json!({
            "metadata": {"name": name, "namespace": "chats", "uid": name, "labels": {"tier": name}},
            "spec": {"key": {"from": [{"query": "user"}]}},
            "status": {"connections": 1200},
        });
        let mut pool: WebSocketPool = serde_json::from_value(pool).unwrap();
        pool.status.as_mut().unwrap().connections_at = at.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
        pool
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_count_is_a_figure_while_it_is_young() {
        let at = second(1_000);
        let of = |now| of(&pool("chat", Some(at)), second(now));
        assert_eq!(of(1_030), Ok(Figure { connections: 1200, at }));
        assert_eq!(of(1_031), Err(NoFigure::NotCurrent(at)));
        assert_eq!(of(969), Err(NoFigure::NotCurrent(at)), "a clock that is ahead says nothing about now");
    }

    #[test]
    fn what_was_not_counted_is_never_zero() {
        assert_eq!(of(&pool("chat", None), second(1)), Err(NoFigure::NotCounted));
        let mut without = pool("chat", None);
        without.status = None;
        assert_eq!(of(&without, second(1)), Err(NoFigure::NotCounted));
    }
}
