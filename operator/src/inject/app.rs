//! Which of a pod's containers is the app, and where it listens.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{CONTAINER, PORT, PoolFacts, Refusal, port};

/// The annotation that names the container which `kubectl logs` means. Other injectors set it to the app's.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The app, and what must be held as long as it.
pub(super) struct App<'a> {
    /// Containers, with their places in the pod; the first is the app's. Never empty.
    pub(super) held: Vec<(usize, &'a Container)>,
    /// Where the app listens.
    pub(super) port: u16,
}

impl<'a> App<'a> {
    pub(super) fn find(
        metadata: &ObjectMeta,
        spec: &'a PodSpec,
        pool: &str,
        facts: &PoolFacts,
    ) -> Result<Self, Refusal> {
        let containers = &spec.containers;
        let known_port = match facts.port {
            Some(port) => Some(port),
            None => annotation(metadata, PORT).map(read_port).transpose()?,
        };
        let named = |name: &str| containers.iter().position(|container| container.name == name);
        let places = if let Some(names) = annotation(metadata, CONTAINER) {
            let place = |name: &str| {
                let present = || containers.iter().map(|c| format!("{:?}", c.name)).collect::<Vec<_>>().join(", ");
                named(name).ok_or_else(|| Refusal::UnknownContainer { name: name.to_owned(), present: present() })
            };
            names.split(',').map(|name| place(name.trim())).collect::<Result<Vec<_>, _>>()?
        } else {
            let listens = known_port.and_then(|port| containers.iter().position(|c| tcp_ports(c).any(|p| p == port)));
            let default = || annotation(metadata, DEFAULT_CONTAINER).and_then(named);
            vec![listens.or_else(default).unwrap_or(0)]
        };
        let held: Vec<_> = places.into_iter().filter_map(|place| Some((place, containers.get(place)?))).collect();
        let (_, app) = held.first().ok_or(Refusal::NoContainers)?;
        let port = match known_port {
            Some(port) => port,
            None => only_port(app).map_err(|declared| Refusal::NoPort {
                pool: pool.to_owned(),
                container: app.name.clone(),
                declared,
            })?,
        };
        refuse_conflicts(spec, app, port)?;
        Ok(Self { held, port })
    }

    pub(super) fn container(&self) -> &'a Container {
        self.held[0].1
    }
}

pub(super) fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn read_port(value: &str) -> Result<u16, Refusal> {
    let refused = || Refusal::Annotation { annotation: PORT, value: value.to_owned(), right: "a port, 1 to 65535" };
    value.parse().ok().filter(|port| *port > 0).ok_or_else(refused)
}

fn tcp_ports(container: &Container) -> impl Iterator<Item = u16> {
    let tcp = container.ports.iter().flatten().filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
    tcp.filter_map(|port| u16::try_from(port.container_port).ok())
}

/// The port of a container that declares one, or else how many it declares.
fn only_port(container: &Container) -> Result<u16, usize> {
    let ports: Vec<u16> = tcp_ports(container).collect();
    if let [port] = ports[..] { Ok(port) } else { Err(ports.len()) }
}

/// The containers of a pod share its ports.
fn refuse_conflicts(spec: &PodSpec, app: &Container, app_port: u16) -> Result<(), Refusal> {
    let ours = port::CLIENTS..=port::METRICS;
    let listening = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let declared = spec.containers.iter().chain(listening).flat_map(|c| tcp_ports(c).map(move |port| (c, port)));
    let taken = std::iter::once((app, app_port)).chain(declared).find(|(_, port)| ours.contains(port));
    taken.map_or(Ok(()), |(container, taken)| Err(Refusal::PortTaken { container: container.name.clone(), taken }))
}
