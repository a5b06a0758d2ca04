//! What is asked, by the path and the query of a request, and as what it is looked up in the rules of who may.

use axum::http::Method;
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, ResourceAttributes};
use kube::core::Selector;
use percent_encoding::percent_decode_str;

use super::documents::Version;
use super::selector;

/// The API's group.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// The resource that has metrics.
pub const RESOURCE: &str = "websocketpools.wspool.dev";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The groups served here.
    Groups,
    /// The versions of the group.
    Group,
    /// The metrics of a version.
    Resources(Version),
    /// A metric of an object, or of several when its name is `*`.
    Metric {
        /// In the words of which version.
        version: Version,
        /// The object's namespace.
        namespace: String,
        /// The object's resource and group.
        resource: String,
        /// The object's name.
        name: String,
        /// The metric.
        metric: String,
    },
}

/// As what a request is looked up.
#[derive(Clone, Debug, PartialEq)]
pub enum Attributes {
    /// A metric is a subresource of its object.
    Resource(Box<ResourceAttributes>),
    /// A path.
    Path(NonResourceAttributes),
}

/// The query of a question about a metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Which pools, where several are asked for.
    pub pools: Selector,
}

impl Question {
    /// The question of a path, if there is such a one.
    pub fn read(path: &str) -> Option<Self> {
        let segments = path.trim_matches('/').split('/');
        let segments: Option<Vec<_>> = segments.map(|word| percent_decode_str(word).decode_utf8().ok()).collect();
        let segments = segments?;
        let words: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        match *words.as_slice() {
            ["apis"] => Some(Self::Groups),
            ["apis", GROUP] => Some(Self::Group),
            ["apis", GROUP, version] => Version::read(version).map(Self::Resources),
            ["apis", GROUP, version, "namespaces", namespace, resource, name, metric] => Some(Self::Metric {
                version: Version::read(version)?,
                namespace: namespace.to_owned(),
                resource: resource.to_owned(),
                name: name.to_owned(),
                metric: metric.to_owned(),
            }),
            _ => None,
        }
    }
}

impl Options {
    /// Reads a query string.
    pub fn read(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8_lossy();
            match name {
                "labelSelector" => {
                    options.pools =
                        selector::read(&value).map_err(|error| format!("labelSelector {value:?}: {error}"))?;
                }
                "metricLabelSelector" if !value.is_empty() => {
                    return Err(format!(
                        "metricLabelSelector {value:?}: the metric has no labels; leave out the metric's selector"
                    ));
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// As what a request is looked up. The API server in front looks it up by the same words.
pub fn attributes(method: &Method, path: &str, question: &Question) -> Attributes {
    let Question::Metric { version, namespace, resource, name, metric } = question else {
        let verb = Some(method.as_str().to_ascii_lowercase());
        return Attributes::Path(NonResourceAttributes { path: Some(path.to_owned()), verb });
    };
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    Attributes::Resource(Box::new(ResourceAttributes {
        namespace: Some(namespace.clone()),
        verb: Some(verb.to_owned()),
        group: Some(GROUP.to_owned()),
        version: Some(version.name().to_owned()),
        resource: Some(resource.clone()),
        subresource: Some(metric.clone()),
        name: Some(name.clone()),
        ..ResourceAttributes::default()
    }))
}

#[cfg(test)]
mod tests {
    use kube::core::Expression;

    use super::*;

    const METRIC: &str =
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/chats/websocketpools.wspool.dev/%2A/connections";

    #[test]
    fn a_metric_is_looked_up_as_a_subresource_of_its_object() {
        let question = Question::read(METRIC).unwrap();
        let Attributes::Resource(attributes) = attributes(&Method::GET, METRIC, &question) else {
            panic!("it is a resource")
        };
        let words = [&attributes.verb, &attributes.resource, &attributes.name, &attributes.subresource];
        let words = words.map(|word| word.as_deref().unwrap());
        assert_eq!(words, ["get", RESOURCE, "*", "connections"]);
        assert_eq!((attributes.namespace.as_deref(), attributes.group.as_deref()), (Some("chats"), Some(GROUP)));
    }

    #[test]
    fn what_is_not_about_an_object_is_looked_up_by_its_path() {
        for path in ["/", "/apis/other", "/apis/custom.metrics.k8s.io/v1", "/openapi/v2"] {
            assert_eq!(Question::read(path), None, "{path}");
        }
        let path = "/apis/custom.metrics.k8s.io/v1beta1";
        let question = Question::read(path).unwrap();
        assert_eq!(question, Question::Resources(Version::V1Beta1));
        let Attributes::Path(attributes) = attributes(&Method::POST, path, &question) else { panic!("it is a path") };
        assert_eq!((attributes.path.as_deref(), attributes.verb.as_deref()), (Some(path), Some("post")));
    }

    #[test]
    fn a_query_selects_pools_and_no_labels_of_the_metric() {
        let options = Options::read("labelSelector=tier%3Da&metricLabelSelector=&timeout=5s").unwrap();
        assert_eq!(options.pools, Selector::from(Expression::Equal("tier".into(), "a".into())));
        let error = Options::read("metricLabelSelector=a%3Db").unwrap_err();
        assert!(error.starts_with("metricLabelSelector \"a=b\": the metric has no labels"), "{error}");
        let error = Options::read("labelSelector=a+in+b").unwrap_err();
        assert!(error.starts_with("labelSelector \"a in b\": "), "{error}");
    }
}
