//! Look-up and re-evaluation.
fn main() {}
