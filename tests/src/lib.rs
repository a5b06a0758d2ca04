//! What end-to-end tests are made of. Everything a test proves, it proves on the real binaries and real sockets.
//!
//! ```text
//!  Client, Crowd, Wire ──► Sidecar (a process) ──► App (in the test, writes the Guestbook), or Backend (a Wire)
//!                             ▲
//!            Plan (the test's own placements and grants), or Operator (a process)
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`process`] | a program under test, killed when dropped, its log shown when the test fails |
//! | [`sidecar`], [`operator`] | the two programs |
//! | [`plan`] | placements and grants that a test gives by itself |
//! | [`app`], [`guestbook`] | WebSocket servers, and who was at which of them when |
//! | [`client`], [`crowd`] | WebSocket clients: one, or many that come back by themselves |
//! | [`wire`], [`frames`] | raw bytes, on both sides of a sidecar |
//! | [`script`] | other people's libraries for Node and Python, as servers and as clients |
//! | [`tap`] | a wire that is listened to |
//! | [`control_plane`] | a real Kubernetes API, for the tests named `kubernetes_*`: `make test-api` |
//! | [`scene`] | a whole pool without Kubernetes |
//! | [`helm`] | the chart, by the real Helm |
//! | [`cluster`] | whole nodes, for the tests named `cluster_*`: `make test-cluster` |
//! | [`issuer`] | who signs clients' tokens, and publishes the keys |
//! | [`redis`], [`tls`] | a real Redis; certificates |
//! | [`http`], [`ports`], [`wait`] | requests, free ports, conditions |
//!
//! The apps of a test share its one thread, so that the order in which they write the guestbook is the order in which
//! things happened.

pub mod app;
pub mod client;
pub mod cluster;
pub mod control_plane;
pub mod crowd;
pub mod frames;
pub mod guestbook;
pub mod helm;
pub mod http;
pub mod issuer;
pub mod operator;
pub mod plan;
pub mod ports;
pub mod process;
pub mod redis;
pub mod scene;
pub mod script;
pub mod sidecar;
pub mod tap;
pub mod tls;
pub mod wait;
pub mod wire;

pub use app::App;
pub use client::Client;
pub use crowd::Crowd;
pub use guestbook::Guestbook;
pub use operator::Operator;
pub use plan::Plan;
pub use scene::Scene;
pub use sidecar::Sidecar;
pub use wait::until;
pub use wire::{Backend, Wire};
