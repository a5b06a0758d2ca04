//! Who was at which app, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the apps of a test write down in their connect and disconnect handlers.
#[derive(Clone, Debug, Default)]
pub struct Guestbook(Arc<Mutex<Vec<Visit>>>);

/// One connection to one app.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The app.
    pub server: String,
    /// The parameter `user` of the handshake: the key in these tests.
    pub key: String,
    /// The header `wspool-epoch`.
    pub epoch: Option<String>,
    /// The connect handler.
    pub entered: Instant,
    /// The disconnect handler; `None` while it is connected.
    pub left: Option<Instant>,
    /// The code of the Close that the app got.
    pub code: Option<u16>,
}

/// Names one visit in its book.
#[derive(Clone, Copy, Debug)]
pub struct VisitId(usize);

impl Guestbook {
    /// The connect handler of an app.
    pub fn enter(&self, server: &str, key: &str, epoch: Option<String>) -> VisitId {
        let mut visits = self.lock();
        let (server, key) = (server.to_owned(), key.to_owned());
        visits.push(Visit { server, key, epoch, entered: Instant::now(), left: None, code: None });
        VisitId(visits.len() - 1)
    }

    /// The disconnect handler of an app.
    pub fn leave(&self, id: VisitId, code: Option<u16>) {
        let visit = &mut self.lock()[id.0];
        visit.left = Some(Instant::now());
        visit.code = code;
    }

    /// All visits, in the order in which they began.
    pub fn visits(&self) -> Vec<Visit> {
        self.lock().clone()
    }

    /// The visits of one key.
    pub fn visits_of(&self, key: &str) -> Vec<Visit> {
        self.lock().iter().filter(|visit| visit.key == key).cloned().collect()
    }

    /// How many are at each app now, by key.
    pub fn present(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        let mut present: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        for visit in self.lock().iter().filter(|visit| visit.left.is_none()) {
            *present.entry(visit.key.clone()).or_default().entry(visit.server.clone()).or_default() += 1;
        }
        present
    }

    /// How many are at one app now.
    pub fn count_at(&self, server: &str) -> usize {
        self.lock().iter().filter(|visit| visit.left.is_none() && visit.server == server).count()
    }

    /// Keys that were at two apps at one time, with the two visits.
    pub fn on_two_servers(&self) -> Vec<String> {
        let visits = self.lock();
        let mut by_key: BTreeMap<&str, Vec<&Visit>> = BTreeMap::new();
        for visit in visits.iter() {
            by_key.entry(&visit.key).or_default().push(visit);
        }
        let together = |a: &Visit, b: &Visit| a.left.is_none_or(|left| left > b.entered);
        let mut found = BTreeSet::new();
        for (key, visits) in by_key {
            for (at, first) in visits.iter().enumerate() {
                // Visits are in the order of their beginnings.
                let clash =
                    visits[at + 1..].iter().find(|second| first.server != second.server && together(first, second));
                if let Some(second) = clash {
                    let overlap = first.left.map(|left| left - second.entered);
                    found.insert(format!(
                        "{key}: at {} while it entered {}, for {overlap:?}",
                        first.server, second.server
                    ));
                }
            }
        }
        found.into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Visit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_enters_before_it_has_left_was_on_two_servers() {
        let book = Guestbook::default();
        let first = book.enter("a", "ann", None);
        let second = book.enter("b", "ann", None);
        book.leave(first, None);
        book.leave(second, None);
        assert_eq!(book.on_two_servers().len(), 1);
    }

    #[test]
    fn a_key_that_has_left_or_stays_at_one_server_was_not() {
        let book = Guestbook::default();
        let first = book.enter("a", "ann", None);
        book.enter("a", "bob", None);
        book.enter("a", "bob", None);
        book.leave(first, None);
        book.enter("b", "ann", None);
        assert_eq!(book.on_two_servers(), Vec::<String>::new());
    }
}
