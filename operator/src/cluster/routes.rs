//! The routes to a pool's slots from outside: an Ingress or HTTPRoutes, as functions of the pool and its slots.
//!
//! A slot has its address as long as there is the slot: it leads to the slot's Service, whoever holds it. All slots are in
//! one Ingress; of HTTPRoutes each slot has its own, since one has at most 16 hosts and 16 rules, and each of its rules is
//! for all of its hosts.

use std::collections::BTreeSet;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use ring::SlotId;
use ring::settings::Gateway;
use serde_json::{Value, json};

use super::objects::{Owner, SLOT_LABEL};
use super::trouble::Trouble;
use crate::inject::port;
use crate::pool::{HttpRoutes, IngressRoutes, PoolSpec, Routes};

/// What routes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// networking.k8s.io.
    Ingress,
    /// gateway.networking.k8s.io.
    HttpRoute,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::HttpRoute];

    /// For the API server.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::Ingress => {
                let kind = GroupVersionKind::gvk("networking.k8s.io", "v1", "Ingress");
                ApiResource::from_gvk_with_plural(&kind, "ingresses")
            }
            Self::HttpRoute => {
                let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
                ApiResource::from_gvk_with_plural(&kind, "httproutes")
            }
        }
    }

    fn object(self, metadata: &kube::api::ObjectMeta, spec: &Value) -> DynamicObject {
        let resource = self.resource();
        let object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "spec": spec,
        });
        serde_json::from_value(object).expect("an object has metadata")
    }
}

/// The objects that there should be of a kind.
pub fn wanted(kind: Kind, owner: &Owner, spec: &PoolSpec, slots: &BTreeSet<SlotId>) -> Vec<DynamicObject> {
    let Some(gateway) = &spec.gateway else { return Vec::new() };
    match (kind, &spec.routes) {
        // An Ingress without a rule would be one of everything.
        (Kind::Ingress, Some(Routes::Ingress(_))) if slots.is_empty() => Vec::new(),
        (Kind::Ingress, Some(Routes::Ingress(routes))) => vec![ingress(owner, gateway, routes, slots)],
        (Kind::HttpRoute, Some(Routes::HttpRoute(routes))) => {
            slots.iter().map(|&slot| http_route(owner, gateway, routes, slot)).collect()
        }
        _ => Vec::new(),
    }
}

/// What is said when somebody else has an object of the name that a route would have.
pub fn taken(kind: Kind, name: &str) -> Trouble {
    let kind = kind.resource().kind;
    (
        "RouteTaken",
        format!("the {kind} {name} is somebody else's, and the pool's would have its name: rename or delete it"),
    )
}

/// What is said when the API server knows no such kind.
pub fn unknown() -> Trouble {
    let sentence = "spec.routes.httpRoute needs HTTPRoute of gateway.networking.k8s.io/v1, which this cluster does not \
                    have: install the Gateway API, or write spec.routes.ingress";
    ("NoGatewayAPI", sentence.to_owned())
}

fn ingress(owner: &Owner, gateway: &Gateway, routes: &IngressRoutes, slots: &BTreeSet<SlotId>) -> DynamicObject {
    let addresses: Vec<_> = slots.iter().map(|&slot| (slot, Address::of(gateway, slot))).collect();
    let hosts: BTreeSet<&str> = addresses.iter().map(|(_, address)| address.host.as_str()).collect();
    let rule = |host: &str| {
        let here = addresses.iter().filter(|(_, address)| address.host == host);
        let path = |(slot, address): &(SlotId, Address)| {
            let service = json!({"name": owner.slot_name(*slot), "port": {"number": port::CLIENTS}});
            json!({"path": address.prefix(), "pathType": "Prefix", "backend": {"service": service}})
        };
        json!({"host": host, "http": {"paths": here.map(path).collect::<Vec<_>>()}})
    };
    let mut spec = json!({"rules": hosts.iter().map(|host| rule(host)).collect::<Vec<_>>()});
    if let Some(class) = &routes.class_name {
        spec["ingressClassName"] = json!(class);
    }
    if let Some(secret) = &routes.tls_secret_name {
        spec["tls"] = json!([{"hosts": hosts, "secretName": secret}]);
    }
    let mut metadata = owner.metadata(owner.key.name.clone());
    metadata.annotations = Some(routes.annotations.clone()).filter(|annotations| !annotations.is_empty());
    Kind::Ingress.object(&metadata, &spec)
}

fn http_route(owner: &Owner, gateway: &Gateway, routes: &HttpRoutes, slot: SlotId) -> DynamicObject {
    let address = Address::of(gateway, slot);
    let name = owner.slot_name(slot);
    let mut rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": address.prefix()}}],
        "backendRefs": [{"name": name, "port": port::CLIENTS}],
    });
    if address.path.is_some() {
        // The app knows nothing of slots.
        let rewrite = json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}});
        rule["filters"] = json!([{"type": "URLRewrite", "urlRewrite": rewrite}]);
    }
    let spec = json!({"parentRefs": routes.parent_refs, "hostnames": [address.host], "rules": [rule]});
    let mut metadata = owner.metadata(name);
    metadata.labels.get_or_insert_default().insert(SLOT_LABEL.to_owned(), slot.to_string());
    Kind::HttpRoute.object(&metadata, &spec)
}

/// By what a slot is told from the others.
struct Address {
    host: String,
    /// The path up to the segment with the slot's number, where that is in the path.
    path: Option<String>,
}

impl Address {
    fn of(gateway: &Gateway, slot: SlotId) -> Self {
        let (_, rest) = gateway.url.split_once("://").unwrap_or(("", &gateway.url));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = authority.split_once(':').map_or(authority, |(host, _)| host);
        let fill = |text: &str| text.replace(Gateway::SLOT, &slot.to_string());
        let path = path.find(Gateway::SLOT).map(|at| {
            let end = path[at..].find('/').map_or(path.len(), |more| at + more);
            format!("/{}", fill(&path[..end]))
        });
        Self { host: fill(host), path }
    }

    fn prefix(&self) -> &str {
        self.path.as_deref().unwrap_or("/")
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::PoolKey;
    use super::*;
    use crate::pool::WebSocketPool;

    fn objects(kind: Kind, url: &str, routes: &str) -> Vec<Value> {
        let yaml = format!(
            "{{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {{name: chat}}, spec: {{port: 3000, key: \
             {{from: [{{query: user}}]}}, gateway: {{url: '{url}'}}, routes: {routes}}}}}"
        );
        let spec = WebSocketPool::from_yaml(&yaml).unwrap().spec;
        let key = PoolKey { namespace: "chats".into(), name: "chat".into() };
        let owner = Owner { key, uid: "1".into(), port: Some(3000) };
        wanted(kind, &owner, &spec, &[SlotId(1), SlotId(10)].into()).iter().map(|object| json!(object)).collect()
    }

    #[test]
    fn an_ingress_has_a_host_for_each_slot_or_a_path() {
        let by_host = objects(
            Kind::Ingress,
            "wss://s{slot}.chat.example.com:8443/ws",
            "{ingress: {className: nginx, tlsSecretName: chat-tls, annotations: {a: b}}}",
        );
        let path = |path: &str, slot: u32| {
            let service = json!({"name": format!("chat-{slot}"), "port": {"number": 7480}});
            json!({"path": path, "pathType": "Prefix", "backend": {"service": service}})
        };
        let rule =
            |slot: u32| json!({"host": format!("s{slot}.chat.example.com"), "http": {"paths": [path("/", slot)]}});
        let [ingress] = by_host.as_slice() else { panic!("{by_host:?}") };
        assert_eq!(
            (&ingress["metadata"]["name"], &ingress["metadata"]["annotations"]),
            (&json!("chat"), &json!({"a": "b"}))
        );
        let hosts = json!(["s1.chat.example.com", "s10.chat.example.com"]);
        let spec = json!({
            "ingressClassName": "nginx",
            "tls": [{"hosts": hosts, "secretName": "chat-tls"}],
            "rules": [rule(1), rule(10)],
        });
        assert_eq!(ingress["spec"], spec);

        let by_path = objects(Kind::Ingress, "ws://chat.example.com/slots/{slot}/ws", "{ingress: {}}");
        let paths = [path("/slots/1", 1), path("/slots/10", 10)];
        assert_eq!(by_path[0]["spec"], json!({"rules": [{"host": "chat.example.com", "http": {"paths": paths}}]}));
        assert_eq!(objects(Kind::HttpRoute, "ws://chat.example.com/{slot}", "{ingress: {}}"), Vec::<Value>::new());
    }

    #[test]
    fn each_slot_has_an_http_route_which_takes_the_slot_out_of_the_path() {
        let routes = "{httpRoute: {parentRefs: [{name: front, namespace: infra, sectionName: wss}]}}";
        let by_host = objects(Kind::HttpRoute, "wss://s{slot}.chat.example.com/", routes);
        assert_eq!(by_host.len(), 2);
        assert_eq!(by_host[1]["metadata"]["name"], "chat-10");
        let rule = json!({
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "backendRefs": [{"name": "chat-10", "port": 7480}],
        });
        let spec = json!({
            "parentRefs": [{"name": "front", "namespace": "infra", "sectionName": "wss"}],
            "hostnames": ["s10.chat.example.com"],
            "rules": [rule],
        });
        assert_eq!(by_host[1]["spec"], spec);

        let by_path = objects(Kind::HttpRoute, "wss://chat.example.com/s{slot}", routes);
        let rule = &by_path[0]["spec"]["rules"][0];
        assert_eq!(rule["matches"][0]["path"]["value"], "/s1");
        assert_eq!(rule["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"], "/");
    }
}
