//! What the clients saw, in the order in which they saw it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A server's name, as it tells its clients.
pub type Server = Arc<str>;

/// Where each client is; `None` while it is away.
pub type Places = Vec<Option<Server>>;

/// Something that a client saw.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// The client's number.
    pub client: usize,
    /// What.
    pub what: What,
}

/// What a client saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is connected to a server.
    Arrived(Server),
    /// It has lost its connection. The code is that of the close frame, if one came.
    Left(Option<u16>),
}

/// Numbered messages that came back, or did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echoes {
    /// Came back as they were.
    pub right: u64,
    /// Came back as something else, or unasked.
    pub wrong: u64,
    /// Had not come back when their connection ended.
    pub unanswered: u64,
}

/// The record that all clients write to.
#[derive(Debug)]
pub struct Ledger(Mutex<Record>);

#[derive(Debug)]
struct Record {
    events: Vec<Event>,
    places: Places,
    echoes: Echoes,
}

/// A place in the ledger: the state then, and everything since.
#[derive(Clone, Debug)]
pub struct Mark {
    /// When it was made.
    pub at: Instant,
    /// Where the clients were.
    pub places: Places,
    events: usize,
}

impl Ledger {
    /// An empty ledger for so many clients, all away.
    pub fn new(clients: usize) -> Self {
        Self(Mutex::new(Record { events: Vec::new(), places: vec![None; clients], echoes: Echoes::default() }))
    }

    /// A client has been greeted by a server.
    pub fn arrived(&self, client: usize, server: Server) {
        let mut record = self.record();
        record.places[client] = Some(Arc::clone(&server));
        record.events.push(Event { at: Instant::now(), client, what: What::Arrived(server) });
    }

    /// A client that had arrived has lost its connection.
    pub fn left(&self, client: usize, code: Option<u16>) {
        let mut record = self.record();
        record.places[client] = None;
        record.events.push(Event { at: Instant::now(), client, what: What::Left(code) });
    }

    /// Counts echoes.
    pub fn heard(&self, count: impl FnOnce(&mut Echoes)) {
        count(&mut self.record().echoes);
    }

    /// Where everyone is now.
    pub fn places(&self) -> Places {
        self.record().places.clone()
    }

    /// The echoes so far.
    pub fn echoes(&self) -> Echoes {
        self.record().echoes
    }

    /// Marks this moment.
    pub fn mark(&self) -> Mark {
        let record = self.record();
        Mark { at: Instant::now(), places: record.places.clone(), events: record.events.len() }
    }

    /// What was seen since a mark.
    pub fn since(&self, mark: &Mark) -> Vec<Event> {
        self.record().events[mark.events..].to_vec()
    }

    /// What was seen since a mark, and a new mark from which the record goes on without a gap.
    pub fn turn(&self, mark: &Mark) -> (Vec<Event>, Mark) {
        let record = self.record();
        let next = Mark { at: Instant::now(), places: record.places.clone(), events: record.events.len() };
        (record.events[mark.events..].to_vec(), next)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
