//! To come.

pub mod pool;
