//! Plans which member holds which slot, and moves the connections that must move, paced.
//!
//! ```text
//!   pool.yaml ──► pool ──check──► CheckedPool ─┐
//!   members, with their states ────────────────┼─► planner ──► Roster: who holds which slot
//!                                              │                  │
//!   sidecars' reports, time ──────────► rebalance::Machine ◄──────┘
//!                                              │ actions: save, publish, grant
//!     standalone, cluster ──► driver ──────────┴──► control ──HTTP──► sidecars
//!              └──► admin: /v1/pools, /metrics
//! ```
//!
//! What decides does no I/O: [`pool`], [`planner`] and [`rebalance`] are functions of data. What acts decides nothing:
//! [`driver`] and [`control`], fed by [`standalone`] or by [`cluster`].
//!
//! | module | noun |
//! |---|---|
//! | [`pool`] | the `WebSocketPool` resource, and what is wrong with one |
//! | [`planner`] | which member holds which slot |
//! | [`rebalance`] | the machine that publishes placements and moves connections |
//! | [`driver`] | drives a machine: members in, actions out, state written down |
//! | [`control`] | the client of sidecars' control ports |
//! | [`token`] | what proves to a sidecar who asks |
//! | [`standalone`] | a pool from files, without Kubernetes |
//! | [`cluster`] | pools from an API server |
//! | [`admin`], [`metrics`] | what the operator shows of its pools |
//! | [`ownership`] | the commands `owner` and `plan` |
//! | [`metrics_api`] | the pools' connections, for Kubernetes' autoscaler |
//! | [`inject`], [`webhook`], [`certificate`] | the sidecar put into pods |
//! | [`cli`], [`process`], [`failure`] | the command line, and what a process does around it |

pub mod admin;
pub mod certificate;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod driver;
pub mod failure;
pub mod inject;
pub mod metrics;
pub mod metrics_api;
pub mod ownership;
pub mod planner;
pub mod pool;
pub mod process;
pub mod rebalance;
pub mod standalone;
pub mod token;
pub mod webhook;
