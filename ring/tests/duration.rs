//! Durations read and print as users of Kubernetes know them.

use std::time::Duration;

use proptest::prelude::*;
use ring::duration::GoDuration;

#[test]
fn durations_read_in_every_unit_and_in_sums_of_them() {
    for (text, millis) in [
        ("0s", 0),
        ("500ms", 500),
        ("5s", 5_000),
        ("1.5s", 1_500),
        ("0.25s", 250),
        ("1m30s", 90_000),
        ("1.5h", 5_400_000),
        ("1h2m3s4ms", 3_723_004),
        ("007s", 7_000),
    ] {
        assert_eq!(text.parse(), Ok(GoDuration::from_millis(millis)), "{text}");
    }
}

#[test]
fn a_duration_without_a_unit_or_with_a_strange_one_is_refused_with_examples() {
    for text in
        ["", "5", "s", "-5s", "+5s", "5 s", " 5s", "5s ", "1.s", ".5s", "1.2.3s", "1e3s", "5d", "5us", "5S", "٥s"]
    {
        let error = text.parse::<GoDuration>().expect_err(text).to_string();
        assert!(error.starts_with(&format!("{text:?} is not a duration")) && error.contains("1m30s"), "{error}");
    }
}

#[test]
fn a_duration_too_long_to_count_is_refused() {
    let long = format!("{}h", "9".repeat(400));
    for text in ["18446744073709551616s", "18446744073709551615s18446744073709551615s", &long] {
        assert!(text.parse::<GoDuration>().is_err(), "{text}");
    }
}

#[test]
fn a_duration_prints_in_the_largest_whole_unit() {
    for (millis, text) in
        [(0, "0s"), (1, "1ms"), (1_500, "1500ms"), (90_000, "90s"), (120_000, "2m"), (7_200_000, "2h")]
    {
        assert_eq!(GoDuration::from_millis(millis).to_string(), text);
    }
}

proptest! {
    #[test]
    fn whole_milliseconds_survive_printing_and_reading(millis in 0..u64::from(u32::MAX)) {
        let duration = GoDuration(Duration::from_millis(millis));
        prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        let json = serde_json::to_string(&duration).expect("it writes");
        prop_assert_eq!(serde_json::from_str::<GoDuration>(&json).expect("it reads"), duration);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[0-9.smh]{0,12}|.{0,12}") {
        let _: Result<GoDuration, _> = text.parse();
    }
}
