//! What wspool costs, measured on the real programs.
//!
//! ```text
//!  pool (a program) ── Round ──► kube-apiserver ◄── wspool-operator (a process: Usage; what it asks: Audit)
//!                        └─ Fleet: the sidecars of all pods ◄──HTTP──┘
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`fleet`] | the sidecars of many pods in one process, and their clients |
//! | [`round`] | one measurement of the operator with a pool of some size |
//! | [`usage`] | what a process has used |
//! | [`table`] | figures of several rounds, as Markdown |
//! | [`data_path`] | what a connection, its messages and its move cost, beside nginx and HAProxy |
//! | [`messages`] | what a message to a client of another server costs, beside Redis and Socket.IO |
//! | [`soak`] | a pool that never stands still, for a long time |
//! | [`page`] | where figures are written down |
//! | [`chaos`] | one scenario of changes and faults on a whole cluster, beside nginx |

pub mod chaos;
pub mod data_path;
pub mod fleet;
pub mod messages;
pub mod page;
pub mod round;
pub mod soak;
pub mod table;
pub mod usage;
