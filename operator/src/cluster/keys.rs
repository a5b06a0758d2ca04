//! The secrets that the operator makes: its own key to sign control requests with, and each pool's for its sidecars.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use super::ask::{AskError, Kube, if_there};
use crate::token::{KeyError, Signer, make_key};

/// Where the private key is in its Secret.
const PRIVATE: &str = "control.key";
/// Where a pool's secrets are in theirs: one a line, in hexadecimal.
pub const PEERS: &str = "keys";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server gave none.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It is none.
    #[error("the Secret {secret}: {error}; delete it, and a new one is made")]
    Key {
        /// The Secret.
        secret: String,
        /// What is wrong.
        error: KeyError,
    },
}

/// The key that control requests are signed with. Who makes it first wins, and all replicas use it.
pub async fn signer(kube: &Kube, namespace: &str, name: &str) -> Result<Signer, KeysError> {
    let secrets: Api<Secret> = Api::namespaced(kube.client(), namespace);
    let object = || format!("the Secret {name}");
    let unfit = |error| KeysError::Key { secret: name.to_owned(), error };
    let mut found = if_there(kube.ask("get", object(), secrets.get(name)).await)?;
    if found.is_none() {
        let private = make_key().map_err(unfit)?;
        let secret = secret(name, PRIVATE, private);
        match kube.ask("create", object(), secrets.create(&PostParams::default(), &secret)).await {
            Ok(made) => found = Some(made),
            Err(error) if error.is_conflict() => {
                found = Some(kube.ask("get", object(), secrets.get(name)).await?);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let private = found.and_then(|secret| secret.data?.remove(PRIVATE)).unwrap_or_default();
    Signer::new(&String::from_utf8_lossy(&private.0)).map_err(unfit)
}

/// A secret for the sidecars of one pool, made once. It is never read, and never replaced.
pub async fn make_peers(kube: &Kube, metadata: ObjectMeta) -> Result<(), AskError> {
    let (namespace, name) = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
    let [high, low]: [u128; 2] = rand::random();
    let line = format!("{high:032x}{low:032x}\n");
    let secret = Secret { metadata, ..secret(&name, PEERS, line) };
    let secrets: Api<Secret> = Api::namespaced(kube.client(), &namespace);
    let object = format!("the Secret {name}");
    match kube.ask("create", object, secrets.create(&PostParams::default(), &secret)).await {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

fn secret(name: &str, key: &str, value: String) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(key.to_owned(), ByteString(value.into_bytes()))])),
        ..Secret::default()
    }
}
