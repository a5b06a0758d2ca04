//! The keys that programs are asked about, here and in `tests/tests/agreement`.

/// How many keys each configuration is asked about.
pub(crate) const KEYS: usize = 20_000;

/// Keys of all lengths and bytes that stand in a header's value.
pub(crate) fn keys() -> Vec<String> {
    let key = |number: usize| match number % 5 {
        0 => format!("user-{number}"),
        1 => number.to_string(),
        2 => format!("ü/{number}?&=%41\u{1f600}"),
        3 => format!("{number}{}", "x".repeat(number % 97)),
        _ => format!("{:x}-{number}", number.wrapping_mul(0x9E37_79B9)),
    };
    (0..KEYS).map(key).collect()
}
