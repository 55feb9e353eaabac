//! Statements that others can check and pass on: the bytes that were signed, the signature, and the key.
//!
//! A connection proves who says something to whoever hears it first ([`identity`](crate::identity)). A third party has only what was written down.
//! So a statement is signed with the key of the certificate of its process, and kept and passed on as the bytes that were signed: nobody encodes it
//! again, so no canonical form is needed, and a field of a later build survives. What is decoded is what was verified, and not before.
//!
//! Signed is a domain in front of the bytes: that of these statements, the swarm, the kind of statement and its version. No signature counts in another
//! one, nor does one of TLS, which puts other bytes in front with the same key. ECDSA on P-256 over SHA-256: what all certificates of an
//! [`Authority`](crate::Authority) have. One statement can have many valid signatures; whoever counts statements compares bytes, not signatures.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use rustls::SignatureScheme;
use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use thiserror::Error;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::proto;

/// Bytes in front of all that is signed here.
const DOMAIN: &[u8] = b"dunlin statement 1";
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
/// Bytes of a statement.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of a key or a signature: more than those of P-256 have.
const KEY_BYTES_MAX: usize = 256;

/// What is signed.
pub trait Signable: Message + Default {
    /// Its kind: two kinds that have the same bytes say two things.
    const KIND: &'static str;
    /// Of its meaning: another one when what old fields mean changes.
    const VERSION: u32;
}

/// A peer has made an update: `state` is what it holds after `step` of them.
impl Signable for proto::training::Applied {
    const KIND: &'static str = "training.Applied";
    const VERSION: u32 = 1;
}

/// Why a statement is not made, or does not count.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The key cannot sign, or the random source fails.
    #[error("cannot sign with the key of this process: {0}")]
    Sign(String),
    /// It has more than it may, or lacks something.
    #[error("a signed statement with {0} that cannot be")]
    Malformed(&'static str),
    /// Somebody else signed it.
    #[error("it is signed with another key than that of {0}")]
    OtherKey(String),
    /// Other bytes were signed, or elsewhere, or as another kind or version of statement.
    #[error("the signature is not one of these bytes, as version {version} of {kind} in this swarm")]
    Wrong {
        /// The kind that was expected.
        kind: &'static str,
        /// Its version.
        version: u32,
    },
    /// It was signed and is no such statement all the same.
    #[error("it is signed, but is no {kind}: {why}")]
    NoStatement {
        /// The kind that was expected.
        kind: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// A key that others know a process by: the DER of its certificate's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(Arc<[u8]>);

impl PublicKey {
    /// The key with these bytes (DER, `SubjectPublicKeyInfo`). Whether it is one is seen when something is verified.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Self {
        Self(der.into())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_der(&self) -> &[u8] {
        &self.0
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok((rest, key)) = SubjectPublicKeyInfo::from_der(&self.0) else { return false };
        let point = &key.subject_public_key.data;
        let all = default_provider().signature_verification_algorithms.mapping;
        let algorithm = all.iter().find(|(scheme, _)| *scheme == SCHEME).and_then(|(_, found)| found.first());
        rest.is_empty()
            && algorithm.is_some_and(|found| found.verify_signature(point, message, signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = &self.0[self.0.len().saturating_sub(8)..];
        tail.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key of this process.
pub struct SigningIdentity {
    key: Arc<dyn SigningKey>,
    public: PublicKey,
}

impl SigningIdentity {
    /// Signs with `key` (PEM, PKCS#8): that of the process's certificate, so that others know whose signatures they are.
    ///
    /// # Errors
    /// When it is no key on P-256.
    pub fn new(key: &str) -> Result<Self, SignatureError> {
        let failed = |why: &dyn fmt::Display| SignatureError::Sign(why.to_string());
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| failed(&error))?;
        let key = sign::any_ecdsa_type(&der).map_err(|error| failed(&error))?;
        if key.choose_scheme(&[SCHEME]).is_none() {
            return Err(failed(&"it is not on P-256"));
        }
        let public = PublicKey::from_der(&key.public_key().ok_or_else(|| failed(&"it has no public key"))?);
        Ok(Self { key, public })
    }

    /// What others know its signatures by.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a statement for `swarm`, whatever tells that from all others.
    ///
    /// # Errors
    /// When the statement is too long, or the random source fails.
    pub fn sign<T: Signable>(&self, swarm: &str, statement: &T) -> Result<Signed<T>, SignatureError> {
        let body = Bytes::from(statement.encode_to_vec());
        if body.len() > BODY_BYTES_MAX {
            return Err(SignatureError::Malformed("a body"));
        }
        let signer = self.key.choose_scheme(&[SCHEME]);
        let signer = signer.ok_or_else(|| SignatureError::Sign("it is not on P-256".to_owned()))?;
        let signature = signer.sign(&signed_bytes::<T>(swarm, &body));
        let signature = signature.map_err(|error| SignatureError::Sign(error.to_string()))?.into();
        Ok(Signed { body, key: self.public.clone(), signature, kind: PhantomData })
    }
}

/// A statement as it was signed. It says nothing before it is verified.
pub struct Signed<T> {
    body: Bytes,
    key: PublicKey,
    signature: Bytes,
    kind: PhantomData<fn() -> T>,
}

impl<T: Signable> Signed<T> {
    /// What it says, if the holder of `key` signed it for `swarm` as this kind and version of statement. `holder` is who that is, for people.
    ///
    /// # Errors
    /// When it was not, or is no such statement.
    pub fn verify(&self, swarm: &str, key: &PublicKey, holder: &str) -> Result<T, SignatureError> {
        let (kind, version) = (T::KIND, T::VERSION);
        if self.key != *key {
            return Err(SignatureError::OtherKey(holder.to_owned()));
        }
        if !key.verifies(&signed_bytes::<T>(swarm, &self.body), &self.signature) {
            return Err(SignatureError::Wrong { kind, version });
        }
        T::decode(self.body.clone())
            .map_err(|error| SignatureError::NoStatement { kind, why: error.to_string() })
    }

    /// The key that it claims to be signed with: whose that is, others know.
    #[must_use]
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The bytes that were signed. Two statements are one if these and their keys are equal.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// As it goes on, with the bytes that came.
    #[must_use]
    pub fn to_wire(&self) -> proto::Signed {
        proto::Signed {
            body: self.body.clone(),
            key: Bytes::copy_from_slice(self.key.as_der()),
            signature: self.signature.clone(),
        }
    }

    /// As it came, not verified.
    ///
    /// # Errors
    /// When something is missing or longer than it can be.
    pub fn from_wire(signed: proto::Signed) -> Result<Self, SignatureError> {
        let proto::Signed { body, key, signature } = signed;
        for (what, bytes, max) in [("a key", &key, KEY_BYTES_MAX), ("a signature", &signature, KEY_BYTES_MAX)]
        {
            if bytes.is_empty() || bytes.len() > max {
                return Err(SignatureError::Malformed(what));
            }
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(SignatureError::Malformed("a body"));
        }
        Ok(Self { body, key: PublicKey::from_der(&key), signature, kind: PhantomData })
    }
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        let Self { body, key, signature, kind } = self;
        Self { body: body.clone(), key: key.clone(), signature: signature.clone(), kind: *kind }
    }
}

impl<T: Signable> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes, said to be signed with {:?}", T::KIND, self.body.len(), self.key)
    }
}

/// What the signature is of. Each part has its length in front: no two lists of parts make the same bytes.
fn signed_bytes<T: Signable>(swarm: &str, body: &[u8]) -> Vec<u8> {
    let version = T::VERSION.to_le_bytes();
    let parts: [&[u8]; 5] = [DOMAIN, swarm.as_bytes(), T::KIND.as_bytes(), &version, body];
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        bytes.extend((part.len() as u64).to_le_bytes());
        bytes.extend(part);
    }
    bytes
}

#[cfg(test)]
mod tests;
