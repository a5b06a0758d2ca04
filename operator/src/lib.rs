//! To come.

pub mod inject;
pub mod planner;
pub mod pool;
pub mod rebalance;
