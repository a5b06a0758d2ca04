//! Plans which member holds which slot, and moves the connections that must move, paced.

pub mod admin;
pub mod certificate;
pub mod control;
pub mod inject;
pub mod metrics;
pub mod planner;
pub mod pool;
pub mod rebalance;
pub mod standalone;
pub mod webhook;
