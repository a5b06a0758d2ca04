//! What a connection costs: its handshake, its memory, its messages, its move.
//!
//! ```text
//!  core 1: Load (clients) ──► core 0: a proxy of one Kind ──► core 1: Echo (the app)
//! ```
//!
//! Load and app are one thread of this process. The proxies have the other core for themselves, so that the CPU time the
//! kernel counts for them is what their work costs.

pub mod axis;
pub mod cores;
pub mod echo;
pub mod load;
pub mod moving;
pub mod plot;
pub mod proxy;
pub mod report;
pub mod run;
pub mod scratch;
