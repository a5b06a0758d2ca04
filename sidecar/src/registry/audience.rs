//! The keys that have somebody to hear what is published for them.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{KeyId, Registry};

/// How many keys are remembered while nobody asks: clients choose them. When more have changed, all are looked at.
const MOST: usize = 4_096;

/// Keys that are to be looked at again. Nothing is collected until somebody wants to know.
#[derive(Debug, Default)]
pub(super) struct Changes {
    wanted: Option<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    all: bool,
    keys: HashSet<Arc<str>>,
    wake: Arc<Notify>,
}

/// What has changed since the last time.
#[derive(Debug, PartialEq, Eq)]
pub enum Audience {
    /// These keys, all of them, have an audience, and no others.
    All(HashSet<Arc<str>>),
    /// These have one, or have none any more.
    Some(Vec<(Arc<str>, bool)>),
}

impl Changes {
    /// A key's connections have changed.
    pub(super) fn one(&mut self, key: &Arc<str>) {
        let Some(wanted) = self.wanted.as_mut().filter(|wanted| !wanted.all) else { return };
        if wanted.keys.len() >= MOST {
            return self.all();
        }
        wanted.keys.insert(Arc::clone(key));
        wanted.wake.notify_one();
    }

    /// Those of all keys may have.
    pub(super) fn all(&mut self) {
        if let Some(wanted) = &mut self.wanted {
            wanted.all = true;
            wanted.keys = HashSet::new();
            wanted.wake.notify_one();
        }
    }
}

impl Registry {
    /// From now on, wakes whoever waits when there is something in [`Registry::audience`].
    pub fn watch_audience(&mut self, wake: Arc<Notify>) {
        self.changes.wanted = Some(Wanted { all: true, keys: HashSet::new(), wake });
    }

    /// From now on, does not.
    pub fn ignore_audience(&mut self) {
        self.changes.wanted = None;
    }

    /// All of it.
    pub fn whole_audience(&mut self) -> Audience {
        self.changes.all();
        self.audience()
    }

    /// What has changed since this was last asked, or all of it.
    pub fn audience(&mut self) -> Audience {
        let (all, changed) = match &mut self.changes.wanted {
            Some(wanted) => (std::mem::take(&mut wanted.all), std::mem::take(&mut wanted.keys)),
            None => (true, HashSet::new()),
        };
        if all {
            let heard = self.keys.iter().filter(|(id, _)| self.has_audience(*id));
            return Audience::All(heard.map(|(_, entry)| Arc::clone(&entry.key)).collect());
        }
        let look = |key: Arc<str>| {
            let heard = self.ids.get(&key).is_some_and(|id| self.has_audience(*id));
            (key, heard)
        };
        Audience::Some(changed.into_iter().map(look).collect())
    }

    /// Whether a key has connections here that may get messages, or is to get back some that it had.
    pub(super) fn has_audience(&self, id: KeyId) -> bool {
        let entry = &self.keys[id];
        let on_their_way = entry.expected_receivers > 0 || entry.away_receivers > 0;
        on_their_way
            || self.cut_overs.has(id)
            || entry.connections.iter().any(|id| self.may_receive(&self.connections[*id]))
    }
}

#[cfg(test)]
mod tests {
    use ring::claim::{Arrival, Released};

    use super::super::Admission;
    use super::super::tests::{holding, placement};
    use super::*;
    use crate::relay::Link;

    #[test]
    fn keys_that_come_and_go_while_nobody_asks_are_not_remembered_without_end() {
        let (mut registry, held) = holding(10);
        registry.place(&placement(2, &["b"], &[]));
        registry.watch_audience(Arc::new(Notify::new()));
        assert!(matches!(registry.audience(), Audience::All(_)));
        for n in 0..3 * MOST {
            registry.enter(&format!("redirected-{n}"), Arrival::Owner, None);
            assert!(registry.changes.wanted.as_ref().is_some_and(|wanted| wanted.keys.len() <= MOST));
        }
        assert_eq!(registry.audience(), Audience::All(HashSet::new()), "nobody may receive: all were looked at");
        registry.remove(held[0].1);
        assert_eq!(registry.audience(), Audience::Some(vec![(held[0].0.as_str().into(), false)]));
    }

    #[test]
    fn a_key_is_heard_for_those_on_their_way_that_may_get_messages_whoever_else_has_come() {
        let (mut registry, _) = holding(0);
        registry.place(&placement(2, &["a"], &[(1, &["b"])]));
        let proof = Released(registry.view().version());
        for (key, receivers) in [("ann", 1), ("bob", 0)] {
            registry.expect(key, 1, receivers);
            let Admission::Seated(seat) = registry.enter(key, Arrival::Owner, Some(&proof)) else {
                panic!("{key} is ours")
            };
            registry.register(&seat, Arc::new(Link::new()), false);
        }
        assert_eq!(registry.whole_audience(), Audience::All(HashSet::from(["ann".into()])));
    }
}
