//! The files of `wspool-operator standalone`: a pool, or a list of members.
#![no_main]

use libfuzzer_sys::fuzz_target;
use operator::pool::{WebSocketPool, check};
use operator::standalone::members;

fuzz_target!(|text: &str| {
    if let Ok(pool) = WebSocketPool::from_yaml(text)
        && let Err(faults) = check::check(&pool, Some("a secret that is long enough to be a seed"))
    {
        assert!(!faults.to_string().is_empty(), "what is refused is explained");
    }
    if let Err(error) = members::parse(text) {
        assert!(!error.to_string().is_empty(), "what is refused is explained");
    }
});
