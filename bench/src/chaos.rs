//! One scenario of changes and faults on a whole cluster, with the same clients in front of several ways to run a pool.
//!
//! ```text
//!  Scenario ── the same steps for all ──► Arm (a namespace: a Deployment, a way in)
//!     │                                     ▲
//!     └─ faults: processes, links, nodes    └── Crowd: clients with numbered messages ──► Ledger ──► one row a step
//! ```

pub mod arm;
pub mod client;
pub mod fault;
pub mod ledger;
pub mod nginx;
pub mod report;
pub mod scenario;
