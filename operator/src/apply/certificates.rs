//! mTLS inside of a swarm: one certificate authority per swarm, one leaf per worker. Nothing outside of the swarm trusts it, and the swarm
//! trusts nothing else.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde_json::{Value, json};
use thiserror::Error;

use crate::labels::Owner;

/// Certificates are bound to the life of the swarm and its pods, not to a calendar: the authority's key never leaves the namespace, and
/// deleting the swarm ends it.
const NOT_BEFORE: (i32, u8, u8) = (2020, 1, 1);
const NOT_AFTER: (i32, u8, u8) = (2120, 1, 1);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The library refuses, mostly because of a name.
    #[error("cannot make a certificate for {holder}")]
    Make {
        /// Whom it was for.
        holder: String,
        /// The reason.
        source: rcgen::Error,
    },
    /// The authority's Secret is not as the operator wrote it.
    #[error(
        "Secret {0} has no usable ca.crt and ca.key: delete it, and the operator makes a new authority and new peers"
    )]
    Secret(String),
}

/// Certificate and key in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Certificate.
    pub certificate: String,
    /// PKCS#8 key.
    pub key: String,
}

/// The certificate authority of one swarm.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate(owner: &Owner) -> Result<Self, CertificateError> {
        let make = |source| CertificateError::Make { holder: owner.authority(), source };
        let key = KeyPair::generate().map_err(make)?;
        let certificate = authority_params(owner).self_signed(&key).map_err(make)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), issuer: Issuer::new(authority_params(owner), key) })
    }

    /// The authority of an existing Secret.
    ///
    /// # Errors
    /// When a part is missing or is no key.
    pub fn load(owner: &Owner, data: &BTreeMap<String, ByteString>) -> Result<Self, CertificateError> {
        let bad = || CertificateError::Secret(owner.authority());
        let text = |name: &str| {
            data.get(name)
                .and_then(|b| String::from_utf8(b.0.clone()).ok())
                .filter(|t| t.contains("-----BEGIN"))
        };
        let (certificate, key) = text("ca.crt").zip(text("ca.key")).ok_or_else(bad)?;
        let pair = KeyPair::from_pem(&key).map_err(|_| bad())?;
        // The subject and key identifier follow from owner and key, so the parameters need not be parsed back.
        Ok(Self { certificate, key, issuer: Issuer::new(authority_params(owner), pair) })
    }

    /// The authority's certificate in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for both ends of a connection, valid for `names`.
    ///
    /// # Errors
    /// When a name is not a DNS name.
    pub fn issue(&self, names: &[String]) -> Result<Leaf, CertificateError> {
        let holder = names.first().cloned().unwrap_or_default();
        let make = |source| CertificateError::Make { holder: holder.clone(), source };
        let mut params = CertificateParams::new(names).map_err(make)?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, holder.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params);
        let key = KeyPair::generate().map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem() })
    }

    /// The Secret that keeps the authority.
    #[must_use]
    pub fn secret(&self, owner: &Owner) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": owner.metadata(&owner.authority(), ""),
            "type": "Opaque",
            "data": data([("ca.crt", &self.certificate), ("ca.key", &self.key)]),
        })
    }

    /// The Secret that a worker mounts at its `--tls-dir`.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn leaf_secret(
        &self,
        owner: &Owner,
        name: &str,
        role: &str,
        names: &[String],
    ) -> Result<Value, CertificateError> {
        let leaf = self.issue(names)?;
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": owner.metadata(name, role),
            "type": "kubernetes.io/tls",
            "data": data([("ca.crt", &self.certificate), ("tls.crt", &leaf.certificate), ("tls.key", &leaf.key)]),
        }))
    }
}

/// Names in the certificate of a worker. The last one is what the operator expects.
#[must_use]
pub fn worker_names(owner: &Owner, pod: &str) -> [String; 2] {
    [pod.to_owned(), format!("{pod}.{}.dunlin", owner.name)]
}

/// Names in the certificate of a conductor: its own as of any worker, and those of the Service in front of it.
#[must_use]
pub fn conductor_names(owner: &Owner, pod: &str) -> Vec<String> {
    let (service, namespace) = (owner.conductor(), &owner.namespace);
    let [as_pod, as_worker] = worker_names(owner, pod);
    let (in_namespace, in_cluster) = (format!("{service}.{namespace}"), format!("{service}.{namespace}.svc"));
    vec![as_pod, service, in_namespace, in_cluster, as_worker]
}

/// Names in the certificate that all gateways share.
#[must_use]
pub fn gateway_names(owner: &Owner) -> Vec<String> {
    vec![owner.gateway(), format!("gateway.{}.dunlin", owner.name)]
}

/// Names in the operator's own certificate.
#[must_use]
pub fn operator_names(owner: &Owner) -> Vec<String> {
    vec![format!("operator.{}.dunlin", owner.name)]
}

fn authority_params(owner: &Owner) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, format!("dunlin {} {}", owner.uid, owner.name));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    params
}

fn set_validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(NOT_BEFORE.0, NOT_BEFORE.1, NOT_BEFORE.2);
    params.not_after = date_time_ymd(NOT_AFTER.0, NOT_AFTER.1, NOT_AFTER.2);
}

fn data<const N: usize>(files: [(&str, &str); N]) -> BTreeMap<String, ByteString> {
    files.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;
    use crate::testing::owner;

    fn verify(authority: &Authority, leaf: &Leaf, name: &str) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn leaves_of_a_reloaded_authority_verify_for_their_own_names_only() {
        let first = Authority::generate(&owner()).unwrap();
        let secret: k8s_openapi::api::core::v1::Secret =
            serde_json::from_value(first.secret(&owner())).unwrap();
        let again = Authority::load(&owner(), &secret.data.unwrap()).unwrap();
        let leaf = again.issue(&worker_names(&owner(), "smollm2-spot-x7x7x")).unwrap();
        assert!(verify(&first, &leaf, "smollm2-spot-x7x7x"));
        assert!(verify(&first, &leaf, "smollm2-spot-x7x7x.smollm2.dunlin"));
        assert!(!verify(&first, &leaf, "smollm2-gateway"));
    }

    #[test]
    fn a_conductor_is_known_as_its_service_and_as_a_worker() {
        let swarm = Authority::generate(&owner()).unwrap();
        let leaf = swarm.issue(&conductor_names(&owner(), "smollm2-conductor-x7x7x")).unwrap();
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
    fn another_swarm_does_not_trust_the_leaf() {
        let ours = Authority::generate(&owner()).unwrap();
        let theirs = Authority::generate(&Owner { name: "other".into(), ..owner() }).unwrap();
        let leaf = ours.issue(&operator_names(&owner())).unwrap();
        assert!(verify(&ours, &leaf, "operator.smollm2.dunlin"));
        assert!(!verify(&theirs, &leaf, "operator.smollm2.dunlin"));
    }

    #[test]
    fn a_broken_secret_says_what_to_do() {
        let error = Authority::load(&owner(), &BTreeMap::new()).err().map(|e| e.to_string());
        assert!(error.unwrap().contains("delete it"));
    }
}
