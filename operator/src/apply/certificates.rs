//! mTLS inside of a swarm: one certificate authority per swarm, one leaf per worker pod and one for all gateways, each with the role of its
//! holder. Nothing outside of the swarm trusts it, and the swarm trusts nothing else.

use std::collections::BTreeMap;

use dunlin_wire::authority::AuthorityError;
use dunlin_wire::{Authority, Caller, Role, TlsFiles};
use k8s_openapi::ByteString;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use thiserror::Error;

use crate::labels::Owner;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] AuthorityError),
    /// The authority's Secret is not as the operator wrote it.
    #[error(
        "Secret {0} has no usable ca.crt and ca.key: delete it, and the operator makes a new authority and new peers"
    )]
    Secret(String),
}

/// A new authority for a swarm.
///
/// # Errors
/// When the random source fails.
pub fn generate(owner: &Owner) -> Result<Authority, CertificateError> {
    Ok(Authority::generate(&format!("dunlin {} {}", owner.uid, owner.name))?)
}

/// The authority of an existing Secret.
///
/// # Errors
/// When a part is missing or is no key.
pub fn load(owner: &Owner, data: &BTreeMap<String, ByteString>) -> Result<Authority, CertificateError> {
    let bad = || CertificateError::Secret(owner.authority());
    let text = |name: &str| data.get(name).and_then(|b| String::from_utf8(b.0.clone()).ok());
    let (certificate, key) = text("ca.crt").zip(text("ca.key")).ok_or_else(bad)?;
    Authority::from_pem(&certificate, &key).map_err(|_| bad())
}

/// The Secret that keeps the authority.
#[must_use]
pub fn authority_secret(owner: &Owner, authority: &Authority) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": owner.metadata(&owner.authority(), ""),
        "type": "Opaque",
        "data": data([("ca.crt", authority.certificate()), ("ca.key", authority.key())]),
    })
}

/// The Secret `name` that workers with the label `role` mount at their `--tls-dir`.
#[must_use]
pub fn leaf_secret(owner: &Owner, name: &str, role: &str, leaf: &TlsFiles) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": owner.metadata(name, role),
        "type": "kubernetes.io/tls",
        "data": data([("ca.crt", &leaf.authority), ("tls.crt", &leaf.certificate), ("tls.key", &leaf.key)]),
    })
}

/// Whether `data` of a leaf's Secret has a certificate of `authority` with `role`. An authority may be new, and older operators gave no roles.
#[must_use]
pub fn is_current(data: &BTreeMap<String, ByteString>, authority: &Authority, role: Role) -> bool {
    let caller = || {
        let certificate = CertificateDer::from_pem_slice(&data.get("tls.crt")?.0).ok()?;
        Caller::from_certificate(&certificate).ok()
    };
    data.get("ca.crt").is_some_and(|ca| ca.0 == authority.certificate().as_bytes())
        && caller().is_some_and(|caller| caller.role == role)
}

/// What is in the Secret of a leaf; `None` when it is not as the operator wrote it.
#[must_use]
pub fn files(data: &BTreeMap<String, ByteString>) -> Option<TlsFiles> {
    let text = |name: &str| String::from_utf8(data.get(name)?.0.clone()).ok();
    Some(TlsFiles { authority: text("ca.crt")?, certificate: text("tls.crt")?, key: text("tls.key")? })
}

/// Names in the certificate of the pod `pod` with `role`; gateways share one. The last name is what the operator expects.
#[must_use]
pub fn names(owner: &Owner, role: Role, pod: &str) -> Vec<String> {
    let as_worker = format!("{pod}.{}.dunlin", owner.name);
    match role {
        Role::Operator => vec![format!("operator.{}.dunlin", owner.name)],
        Role::Gateway => vec![owner.gateway(), format!("gateway.{}.dunlin", owner.name)],
        Role::Stage | Role::Peer | Role::Trainer => vec![pod.to_owned(), as_worker],
        // Its own as of any worker, and those of the Service in front of it.
        Role::Conductor => {
            let (service, namespace) = (owner.conductor(), &owner.namespace);
            let (inside, outside) = (format!("{service}.{namespace}"), format!("{service}.{namespace}.svc"));
            vec![pod.to_owned(), service, inside, outside, as_worker]
        }
    }
}

fn data<const N: usize>(files: [(&str, &str); N]) -> BTreeMap<String, ByteString> {
    files.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_wire::Validity;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::testing::owner;

    fn verify(authority: &Authority, leaf: &TlsFiles, name: &str) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now()).is_ok()
    }

    fn caller(leaf: &TlsFiles) -> Caller {
        Caller::from_certificate(&CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap())
            .unwrap()
    }

    #[test]
    fn leaves_of_a_reloaded_authority_verify_for_their_own_names_only() {
        let first = generate(&owner()).unwrap();
        let secret: k8s_openapi::api::core::v1::Secret =
            serde_json::from_value(authority_secret(&owner(), &first)).unwrap();
        let again = load(&owner(), &secret.data.unwrap()).unwrap();
        let leaf = again
            .issue(Role::Stage, &names(&owner(), Role::Stage, "smollm2-spot-x7x7x"), Validity::Authority)
            .unwrap();
        assert!(verify(&first, &leaf, "smollm2-spot-x7x7x"));
        assert!(verify(&first, &leaf, "smollm2-spot-x7x7x.smollm2.dunlin"));
        assert!(!verify(&first, &leaf, "smollm2-gateway"));
    }

    #[test]
    fn callers_go_by_the_name_of_their_pod_and_gateways_by_that_of_their_deployment() {
        let swarm = generate(&owner()).unwrap();
        let stage = caller(
            &swarm
                .issue(Role::Stage, &names(&owner(), Role::Stage, "smollm2-spot-x7x7x"), Validity::Authority)
                .unwrap(),
        );
        assert_eq!(stage.role, Role::Stage);
        assert!(stage.is_called("smollm2-spot-x7x7x") && !stage.is_called("smollm2-spot-x7x7x-2"));
        let gateway = caller(
            &swarm.issue(Role::Gateway, &names(&owner(), Role::Gateway, ""), Validity::Authority).unwrap(),
        );
        assert_eq!(gateway.role, Role::Gateway);
        assert!(gateway.is_called("smollm2-gateway-5d8f7c9b4-x7x7x") && !gateway.is_called("other-gateway"));
        let peer = "tiny-conductor-x7x7x";
        let conductor = caller(
            &swarm
                .issue(Role::Conductor, &names(&owner(), Role::Conductor, peer), Validity::Authority)
                .unwrap(),
        );
        assert_eq!((conductor.role, &*conductor.name), (Role::Conductor, peer));
    }

    #[test]
    fn a_conductor_is_known_as_its_service_and_as_a_worker() {
        let swarm = generate(&owner()).unwrap();
        let names = super::names(&owner(), Role::Conductor, "smollm2-conductor-x7x7x");
        let leaf = swarm.issue(Role::Conductor, &names, Validity::Authority).unwrap();
        for name in [
            "smollm2-conductor",
            "smollm2-conductor.default",
            "smollm2-conductor.default.svc",
            "smollm2-conductor-x7x7x",
            "smollm2-conductor-x7x7x.smollm2.dunlin",
        ] {
            assert!(verify(&swarm, &leaf, name), "{name}");
        }
    }

    #[test]
    fn a_leaf_of_an_older_operator_or_another_authority_is_not_current() {
        let (ours, theirs) = (generate(&owner()).unwrap(), generate(&owner()).unwrap());
        let data = |leaf: &TlsFiles| {
            let secret = leaf_secret(&owner(), "smollm2-gateway-tls", "gateway", leaf);
            serde_json::from_value::<k8s_openapi::api::core::v1::Secret>(secret).unwrap().data.unwrap()
        };
        let leaf =
            ours.issue(Role::Gateway, &names(&owner(), Role::Gateway, ""), Validity::Authority).unwrap();
        assert!(is_current(&data(&leaf), &ours, Role::Gateway));
        assert!(!is_current(&data(&leaf), &ours, Role::Stage));
        assert!(!is_current(&data(&leaf), &theirs, Role::Gateway));
        // The authority's own has a name and no role, as all had once.
        let older = TlsFiles { certificate: ours.certificate().to_owned(), ..leaf };
        assert!(!is_current(&data(&older), &ours, Role::Gateway));
    }

    #[test]
    fn another_swarm_does_not_trust_the_leaf() {
        let ours = generate(&owner()).unwrap();
        let theirs = generate(&Owner { name: "other".into(), ..owner() }).unwrap();
        let leaf =
            ours.issue(Role::Operator, &names(&owner(), Role::Operator, ""), Validity::Authority).unwrap();
        assert!(verify(&ours, &leaf, "operator.smollm2.dunlin"));
        assert!(!verify(&theirs, &leaf, "operator.smollm2.dunlin"));
    }

    #[test]
    fn a_broken_secret_says_what_to_do() {
        let error = load(&owner(), &BTreeMap::new()).err().map(|e| e.to_string());
        assert!(error.unwrap().contains("delete it"));
    }
}
