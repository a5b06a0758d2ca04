//! The data path on real sockets. WebSocket ends are tungstenite's, except where a test needs one that does not behave.

mod evictions;
mod passing;
mod rig;
