//! The CRD: the schema that is derived from the types, made plain for the API server and for `kubectl explain`, with the
//! rules that types cannot say.
//!
//! Defaults are in the schema, so `kubectl get -o yaml` shows all that is in force, and a pool keeps what it was made
//! with: a release with other defaults changes new pools only, never the pace at which an old one breaks connections.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::WebSocketPool;
use super::rules::{self, Rule};

/// The CRD as YAML.
pub fn crd() -> String {
    let crd = serde_json::to_value(definition()).expect("a CRD is plain data");
    serde_yaml::to_string(&whole(crd)).expect("a CRD is plain data")
}

fn definition() -> CustomResourceDefinition {
    let mut crd = WebSocketPool::crd();
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let schema = schema.expect("a derived CRD has a schema");
        schema.title = None;
        simplify(schema);
        no_defaults(property(schema, "status"));
        require(property(schema, "spec"), &["port", "target"]);
        // The rules look at these fields, and the API server tries them on the default as it is written.
        at(schema, "spec.key").default = Some(JSON(json!({"from": [], "missing": "Spread", "trust": "Routing"})));
        for rule in rules::all() {
            add(schema, rule);
        }
    }
    crd
}

/// Leaves out what is noise to the API server, and says each default where `kubectl explain` shows it.
fn simplify(schema: &mut JSONSchemaProps) {
    // It warns of formats that it does not know, such as uint16. Ranges say the same.
    schema.format = schema.format.take().filter(|format| matches!(format.as_str(), "int32" | "int64" | "date-time"));
    // A null is as if the field were left out: that holds for fields that are not nullable.
    schema.nullable = None;
    // That one of several fields is set is said by a rule, in words.
    schema.one_of = None;
    // Comments are wrapped for the source; kubectl wraps for the terminal.
    schema.description = schema.description.take().map(|text| text.replace('\n', " "));
    match &mut schema.default {
        // The fields below have their own.
        Some(JSON(Value::Object(fields))) => fields.clear(),
        Some(JSON(Value::String(text))) if text.is_empty() => {}
        Some(JSON(value)) => {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let description = schema.description.get_or_insert_default();
            write!(description, " Default: {value}.").expect("memory");
        }
        None => {}
    }
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(simplify);
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut schema.items {
        simplify(item);
    }
}

/// In a status a figure that is missing is unknown, not 0.
fn no_defaults(schema: &mut JSONSchemaProps) {
    schema.default = None;
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(no_defaults);
}

/// A cluster needs these; `standalone` has other ways, or a better word for what is missing.
fn require(schema: &mut JSONSchemaProps, fields: &[&str]) {
    for field in fields {
        property(schema, field).default = None;
    }
    schema.required = Some(fields.iter().map(|&field| field.to_owned()).collect());
}

fn add(schema: &mut JSONSchemaProps, Rule { at: field, fault, holds, says }: Rule) {
    let rule = ValidationRule {
        rule: holds,
        message: Some(says),
        field_path: Some(fault.to_owned()).filter(|fault| !fault.is_empty()),
        ..ValidationRule::default()
    };
    at(schema, field).x_kubernetes_validations.get_or_insert_default().push(rule);
}

/// The schema of a field: `spec.key.from[].query`.
fn at<'a>(schema: &'a mut JSONSchemaProps, field: &str) -> &'a mut JSONSchemaProps {
    field.split_terminator('.').fold(schema, |schema, step| match step.strip_suffix("[]") {
        Some(list) => match &mut property(schema, list).items {
            Some(JSONSchemaPropsOrArray::Schema(item)) => item,
            _ => panic!("{field}: {list} is no list"),
        },
        None => property(schema, step),
    })
}

fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> &'a mut JSONSchemaProps {
    let field = schema.properties.as_mut().and_then(|fields| fields.get_mut(name));
    field.unwrap_or_else(|| panic!("the schema has no field {name}"))
}

/// Writes whole numbers without a fraction: the bounds in a schema are floats by type.
fn whole(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "a whole number of this size has an exact i64")]
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => json!(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(whole).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, whole(value))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crd_in_the_repository_is_what_the_types_generate() {
        let committed = include_str!("../../../crds/websocketpools.wspool.dev.yaml");
        assert!(committed == super::crd(), "it is stale: run `make generate`");
    }

    #[test]
    fn every_field_is_described_with_its_default() {
        fn look(path: &str, schema: &JSONSchemaProps) {
            let said = schema.description.as_deref().unwrap_or_default();
            assert!(said.ends_with('.'), "{path} is described as {said:?}");
            if let Some(JSON(Value::String(default))) = &schema.default {
                assert!(said.ends_with(&format!(" Default: {default}.")), "{path} is described as {said:?}");
            }
            for (name, field) in schema.properties.iter().flatten() {
                look(&format!("{path}.{name}"), field);
            }
            // Of a list of plain values kubectl shows the list.
            if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items
                && item.properties.is_some()
            {
                look(&format!("{path}[]"), item);
            }
        }
        let mut crd = definition();
        let schema = crd.spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        look("spec", property(schema.unwrap(), "spec"));
    }
}
