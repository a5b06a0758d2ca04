//! The demo: a pool of real processes and a thousand real clients, and what every one of them saw.
//!
//! ```text
//!  crowd: user-0 .. user-999 ──► router sidecar ──► sidecar ──► chat-server      server-1, server-2, ...
//!    │ arrivals, closes, echoes        ▲               ▲
//!    ▼                                 └── operator standalone ──► GET /v1/pools
//!  ledger ──► verdict ◄── owners (ring) ◄────────────────────────────────┘
//!    └──────► picture
//! ```
//!
//! Nothing is believed that wspool says of itself: whether a connection was moved needlessly follows from what its
//! client saw and from the owner function over the slots.
//!
//! | module | noun |
//! |---|---|
//! | [`process`] | a child process that cannot outlive the demo |
//! | [`pool`] | servers, sidecars, router and operator |
//! | [`view`] | what the operator says, as data |
//! | [`ports`] | free loopback ports |
//! | [`crowd`] | clients that reconnect by themselves and check numbered echoes |
//! | [`ledger`] | what the clients saw, in order |
//! | [`verdict`] | what an act has shown, computed from the ledger |
//! | [`balancer`] | the plain TCP balancer that the first act is repeated with |
//! | [`acts`] | the acts |
//! | [`picture`] | the live picture as lines of text |
//! | [`screen`] | the terminal |

pub mod acts;
pub mod balancer;
pub mod crowd;
pub mod ledger;
pub mod picture;
pub mod pool;
pub mod ports;
pub mod process;
pub mod screen;
pub mod verdict;
pub mod view;

use std::io;
use std::time::Duration;

/// Why the demo could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, socket or process failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A process ended that should run.
    #[error("{name} ended by itself ({status}); the end of its log:\n{log}")]
    Ended {
        /// Which one.
        name: String,
        /// How.
        status: std::process::ExitStatus,
        /// Its last lines.
        log: String,
    },
    /// Something did not come about in time.
    #[error("{what}: not within {} s; {state}", limit.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// How things stood then.
        state: String,
    },
    /// A request failed.
    #[error("GET {url}: {why}")]
    Request {
        /// Where to.
        url: String,
        /// Why.
        why: String,
    },
    /// The machine or its set-up does not allow the demo.
    #[error("{0}")]
    Machine(String),
    /// It took too long as a whole.
    #[error("stopped after {} s", .0.as_secs())]
    Limit(Duration),
    /// Somebody asked it to end.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Adds what was being done to an I/O error; for `map_err`.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }
}
