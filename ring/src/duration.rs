//! Durations as users of Kubernetes write them: `500ms`, `5s`, `1m30s`, `1.5h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a duration must look like; the CRD has a rule with the same pattern.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$";

/// A duration that reads and prints in Go's notation. It prints whole milliseconds, in one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GoDuration(pub Duration);

/// Why a duration was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; write for example 500ms, 5s, 1m30s or 1h")]
pub struct DurationError(String);

impl GoDuration {
    /// A number of milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A number of seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let read = || {
            let (mut nanos, mut rest) = part(text)?;
            while !rest.is_empty() {
                let (more, left) = part(rest)?;
                nanos = nanos.checked_add(more)?;
                rest = left;
            }
            Some(Self(Duration::from_nanos(nanos)))
        };
        read().ok_or_else(|| DurationError(text.to_owned()))
    }
}

/// Reads one number with its unit: nanoseconds, and what follows. Whole numbers throughout, so that nothing is rounded.
fn part(text: &str) -> Option<(u64, &str)> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (number, rest) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    // "ms" first: "m" begins it.
    let units = [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000_u64)];
    let (unit, rest) = units.iter().find_map(|(name, unit)| Some((*unit, rest.strip_prefix(name)?)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    // No unit has more than 13 digits of nanoseconds.
    let fraction = &fraction[..fraction.len().min(13)];
    let of_one = u128::from(unit) * fraction.parse::<u128>().ok()? / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let nanos = whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(u64::try_from(of_one).ok()?)?;
    Some((nanos, rest))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            _ if millis.is_multiple_of(3_600_000) => write!(f, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(f, "{}s", millis / 1_000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

impl TryFrom<String> for GoDuration {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

impl From<GoDuration> for String {
    fn from(duration: GoDuration) -> Self {
        duration.to_string()
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for GoDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // Its pattern is a rule of the CRD, which can say what would be right.
        schemars::json_schema!({"type": "string", "maxLength": 32})
    }
}
