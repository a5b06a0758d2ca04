//! To come.

pub mod planner;
pub mod pool;
pub mod rebalance;
