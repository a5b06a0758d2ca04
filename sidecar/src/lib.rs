//! The proxy beside each server: it places connections, and moves them when their owner changes.
//!
//! ```text
//!  client ──► server ──► head ──► origin, key ──► admission ──► app here      ──► relay ⇄ app
//!                │                                   │  ▲          or peer    ──► relay ⇄ peer's client port
//!                └──► plain (hyper)                  ▼  │
//!                                              registry: view + keys + connections
//!                                                    ▲  ▲
//!  operator ──► control ──► placements, grants ──────┘  └── evictor ◄── drain
//! ```
//!
//! Connections run on single-threaded runtimes ([`server`]); the operator's port, metrics and evictions on a thread of
//! their own, so that a busy data path never delays a grant and the other way round. Both meet in the [`registry`].
//!
//! | module | noun |
//! |---|---|
//! | [`cli`] | the command line and the checked configuration |
//! | [`process`], [`sidecar`] | threads, ports and signals; what everything in the process shares |
//! | [`server`], [`upgrade`], [`plain`] | the client port: connections, WebSocket handshakes, everything else |
//! | [`head`], [`key`], [`response`], [`origin`] | what is read off requests and answers |
//! | [`identity`], [`token`], [`jwks`] | who a client is: its key, its token, the keys that check tokens |
//! | [`admission`], [`claims`], [`registry`], [`held`], [`view`] | whose a key is, and who holds it |
//! | [`sessions`] | what spans several requests of a client |
//! | [`gateway`] | where a client should connect, told before it does |
//! | [`relay`], [`buffer`], [`frame`], [`eviction`], [`clock`] | the data path and how one connection leaves it |
//! | [`grants`], [`drain`], [`retirement`], [`evictor`] | when connections must leave, and how fast |
//! | [`revival`], [`listeners`] | when no longer: the app is back |
//! | [`handshakes`], [`idle`] | limits |
//! | [`peers`] | other sidecars |
//! | [`api`], [`messages`], [`message`], [`redis`] | the app's side: messages to clients at any sidecar, sessions |
//! | [`control`], [`placements`], [`metrics`], [`problem`] | the operator's side, and errors as both sides get them |
//! | [`auth`] | who is believed |
//! | [`prestop`] | the app container's hook |

pub mod admission;
pub mod api;
pub mod auth;
pub mod buffer;
pub mod claims;
pub mod cli;
pub mod clock;
pub mod control;
pub mod drain;
pub mod eviction;
pub mod evictor;
pub mod frame;
pub mod gateway;
pub mod grants;
pub mod handshakes;
pub mod head;
pub mod held;
pub mod identity;
pub mod idle;
pub mod jwks;
pub mod key;
pub mod listeners;
pub mod message;
pub mod messages;
pub mod metrics;
pub mod origin;
pub mod peers;
pub mod placements;
pub mod plain;
pub mod prestop;
pub mod problem;
pub mod process;
pub mod redis;
pub mod registry;
pub mod relay;
pub mod response;
pub mod retirement;
pub mod revival;
pub mod server;
pub mod sessions;
pub mod sidecar;
pub mod tls;
pub mod token;
pub mod upgrade;
pub mod view;
