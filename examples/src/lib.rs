//! What stands behind `make demo`. The chat servers and the client in `bin/` and `node/` do not use it: they are
//! examples of what wspool serves, and contain nothing of ours.

pub mod demo;
