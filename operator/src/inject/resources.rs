//! What the sidecar requests, so that the pod keeps its quality of service and its autoscaler.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::app::annotation;
use super::{CPU, MEMORY, Refusal, Sidecar};

/// The least CPU of a sidecar whose request is also its limit: a proxy that is throttled delays every message.
const LIMITED_CPU: &str = "500m";
/// The least memory of a sidecar whose request is also its limit: 50,000 connections take some 80 MB.
const LIMITED_MEMORY: &str = "256Mi";

/// What the sidecar requests.
pub(super) struct Resources {
    pub(super) cpu: String,
    pub(super) memory: String,
    /// The requests are limits too.
    pub(super) limited: bool,
}

impl Resources {
    /// `None` where the pod has resources as a whole: its containers share them, and another request could exceed them.
    ///
    /// Otherwise there is always a CPU request: an autoscaler by CPU fails on a pod with a container that has none.
    pub(super) fn of_sidecar(
        metadata: &ObjectMeta,
        spec: &PodSpec,
        sidecar: &Sidecar,
    ) -> Result<Option<Self>, Refusal> {
        if spec.resources.is_some() {
            return Ok(None);
        }
        let limited = is_guaranteed(spec);
        let amount = |name, configured: &str, least: &str| match annotation(metadata, name) {
            Some(value) => quantity(value).map_err(|_| Refusal::Annotation {
                annotation: name,
                value: value.to_owned(),
                right: "a Kubernetes quantity, for example 200m or 256Mi",
            }),
            None if limited && nanos(configured) < nanos(least) => Ok(least.to_owned()),
            None => Ok(configured.to_owned()),
        };
        Ok(Some(Self {
            cpu: amount(CPU, &sidecar.cpu, LIMITED_CPU)?,
            memory: amount(MEMORY, &sidecar.memory, LIMITED_MEMORY)?,
            limited,
        }))
    }
}

/// Whether every container has limits for CPU and memory, and requests that equal them (or none, which means the same).
fn is_guaranteed(spec: &PodSpec) -> bool {
    let fixed = |container: &Container, name: &str| {
        let Some(resources) = &container.resources else { return false };
        let limit = resources.limits.as_ref().and_then(|limits| nanos(&limits.get(name)?.0));
        let request = resources.requests.as_ref().and_then(|requests| requests.get(name));
        limit.is_some_and(|limit| limit > 0 && request.is_none_or(|request| nanos(&request.0) == Some(limit)))
    };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.all(|container| fixed(container, "cpu") && fixed(container, "memory"))
}

/// Checks a quantity that is more than nothing.
pub(super) fn quantity(text: &str) -> Result<String, &'static str> {
    let more_than_nothing = nanos(text).is_some_and(|nanos| nanos > 0);
    more_than_nothing.then(|| text.to_owned()).ok_or("write a Kubernetes quantity, for example 200m or 256Mi")
}

/// A quantity in billionths, to compare: `1`, `1000m` and `1e0` are the same. `None` for what is not one, or is negative.
fn nanos(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let ten = |exponent: u32| 10_u128.checked_pow(exponent);
    let unit = match suffix {
        "n" => 1,
        "u" => ten(3)?,
        "m" => ten(6)?,
        "" => ten(9)?,
        "k" => ten(12)?,
        "M" => ten(15)?,
        "G" => ten(18)?,
        "T" => ten(21)?,
        "P" => ten(24)?,
        "E" => ten(27)?,
        "Ki" => ten(9)? << 10,
        "Mi" => ten(9)? << 20,
        "Gi" => ten(9)? << 30,
        "Ti" => ten(9)? << 40,
        "Pi" => ten(9)? << 50,
        "Ei" => ten(9)? << 60,
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            ten(u32::try_from(exponent.checked_add(9)?).ok()?)?
        }
    };
    let scale = ten(u32::try_from(fraction.len()).ok()?)?;
    Some(digits.checked_mul(unit)? / scale)
}

#[cfg(test)]
mod tests {
    use super::nanos;

    #[test]
    fn quantities_that_mean_the_same_compare_equal() {
        for (one, other) in
            [("1", "1000m"), ("0.5", "500m"), (".5", "5e-1"), ("1Gi", "1073741824"), ("1.5Ki", "1536"), ("1e3", "1k")]
        {
            assert!(nanos(one).is_some(), "{one}");
            assert_eq!(nanos(one), nanos(other), "{one} and {other}");
        }
        assert!(nanos("100m") < nanos("0.5"));
        assert!(nanos("1Mi") > nanos("1M"));
    }

    #[test]
    fn what_is_not_a_quantity_is_none() {
        for text in ["", ".", "m", "-1", "1.2.3", "1 Gi", "1gi", "1ee3", "1e-99", "99999999999999999999999999999E"] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }
}
