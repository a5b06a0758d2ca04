//! `rebalance.rate`: how fast connections may be evicted.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::rules;

/// How fast connections may be evicted, in the whole pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Connections per second.
    PerSecond(u32),
    /// A share of the pool's connections per minute.
    Share(PerMinute),
}

/// A share in thousandths of a percent, so that `0.5%` is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerMinute(pub u32);

impl Rate {
    /// Evictions per 1,000 seconds, for a pool that holds this many connections.
    pub fn per_1000_seconds(self, connections: u64) -> u64 {
        match self {
            Self::PerSecond(rate) => u64::from(rate) * 1_000,
            Self::Share(PerMinute(share)) => connections.saturating_mul(u64::from(share)) / (100 * 60),
        }
    }

    fn parse_share(text: &str) -> Option<Self> {
        let number = text.strip_suffix('%')?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || whole.len() > 3 || fraction.len() > 3 {
            return None;
        }
        let thousandths: u32 = format!("{fraction:0<3}").parse().ok()?;
        let percent: u32 = whole.parse().ok()?;
        Some(Self::Share(PerMinute(percent * 1_000 + thousandths)))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::PerSecond(rate) => rate.fmt(f),
            Self::Share(PerMinute(share)) if share % 1_000 == 0 => write!(f, "{}%", share / 1_000),
            Self::Share(PerMinute(share)) => {
                let fraction = format!("{:03}", share % 1_000);
                write!(f, "{}.{}%", share / 1_000, fraction.trim_end_matches('0'))
            }
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::PerSecond(rate) => serializer.serialize_u32(*rate),
            Self::Share(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn not_a_rate<E: de::Error>(value: impl std::fmt::Display) -> E {
            E::custom(format_args!("{value} {}", rules::RATE))
        }

        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Rate;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("connections per second, as in 50, or a share of them per minute, as in 5%")
            }

            fn visit_u64<E: de::Error>(self, rate: u64) -> Result<Rate, E> {
                u32::try_from(rate).map(Rate::PerSecond).map_err(|_| not_a_rate(rate))
            }

            fn visit_i64<E: de::Error>(self, rate: i64) -> Result<Rate, E> {
                u32::try_from(rate).map(Rate::PerSecond).map_err(|_| not_a_rate(rate))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                Rate::parse_share(text).ok_or_else(|| not_a_rate(format_args!("{text:?}")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Rate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // One field that takes a number or a string: the only form that a structural schema allows.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_per_second_or_a_share_per_minute() {
        for (text, rate) in [
            ("50", Rate::PerSecond(50)),
            ("\"5%\"", Rate::Share(PerMinute(5_000))),
            ("0.25%", Rate::Share(PerMinute(250))),
        ] {
            assert_eq!(serde_yaml::from_str::<Rate>(text).unwrap(), rate, "{text}");
        }
        for rate in [Rate::PerSecond(50), Rate::Share(PerMinute(5_000)), Rate::Share(PerMinute(250))] {
            assert_eq!(serde_yaml::from_str::<Rate>(&serde_yaml::to_string(&rate).unwrap()).unwrap(), rate);
        }
    }

    #[test]
    fn a_rate_that_is_neither_is_refused_with_what_would_be_right() {
        for text in ["-1", "5.5", "fast", "'5'", "'%'", "1.%", ".5%", "0005%", "99999999999"] {
            let refused = serde_yaml::from_str::<Rate>(text).unwrap_err().to_string();
            assert!(refused.contains("connections per second"), "{text}: {refused}");
        }
    }

    #[test]
    fn five_percent_per_minute_of_1200_connections_is_one_per_second() {
        assert_eq!(Rate::Share(PerMinute(5_000)).per_1000_seconds(1_200), 1_000);
    }
}
