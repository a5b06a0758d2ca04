//! A test's own corner of the control plane.

use std::ffi::OsStr;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{self, Pod, ServiceAccount};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};

use super::{Access, Kubelet};
use crate::wait::until;

/// A namespace with a name of its own. It goes when the control plane goes.
#[derive(Clone)]
pub struct Namespace {
    name: String,
    access: Access,
    client: Client,
}

impl Namespace {
    /// Makes one whose name begins with `purpose`, and waits until pods may be made in it.
    pub async fn create(access: &Access, purpose: &str) -> Self {
        let client = access.client().await;
        let metadata = ObjectMeta { generate_name: Some(format!("{purpose}-")), ..ObjectMeta::default() };
        let namespace = v1::Namespace { metadata, ..v1::Namespace::default() };
        let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
        let name = made.unwrap_or_else(|error| panic!("no namespace for {purpose}: {error}")).name_any();
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
        until("the namespace has its service account", async || {
            accounts.get("default").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Self { name, access: access.clone(), client }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The way to its control plane.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The client that its [`api`](Self::api) uses.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its objects of a kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Its kubelet.
    pub fn kubelet(&self) -> Kubelet {
        Kubelet::new(self.api())
    }

    /// Runs kubectl in it: what it prints, or what it complains about.
    pub async fn kubectl(&self, arguments: &[impl AsRef<OsStr>], input: &str) -> Result<String, String> {
        let here = ["--namespace", &self.name].map(OsStr::new);
        let arguments: Vec<&OsStr> = here.into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect();
        self.access.kubectl(&arguments, input).await
    }

    /// Applies YAML as a user does: what kubectl prints, or why it was refused.
    pub async fn apply(&self, yaml: &str) -> Result<String, String> {
        self.kubectl(&["apply", "--filename", "-"], yaml).await
    }

    /// Waits until exactly so many pods with these labels (`app=chat`) are there and not on their way out.
    pub async fn pods(&self, labels: &str, count: usize) -> Vec<Pod> {
        let pods: Api<Pod> = self.api();
        let these = ListParams::default().labels(labels);
        until(&format!("{count} pods {labels}"), async || {
            let list = pods.list(&these).await.map_err(|error| error.to_string())?;
            let staying: Vec<Pod> =
                list.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
            let names = staying.iter().map(Pod::name_any).collect::<Vec<_>>();
            if staying.len() == count { Ok(staying) } else { Err(format!("{names:?}")) }
        })
        .await
    }
}
