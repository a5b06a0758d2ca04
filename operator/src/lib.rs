//! To come.

pub mod certificate;
pub mod inject;
pub mod planner;
pub mod pool;
pub mod rebalance;
pub mod webhook;
