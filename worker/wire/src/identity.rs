//! Who calls: role and name, as the certificate of the connection says.
//!
//! The subject of a certificate has the name as its common name (CN) and the role as its organizational unit (OU).

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use tonic::transport::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use crate::signed::PublicKey;

/// What the holder of a certificate does in its swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Gives orders: the operator, or the supervisor of a local swarm.
    Operator,
    /// Owns sessions.
    Gateway,
    /// Executes layers.
    Stage,
    /// Owns the ledger of a training run.
    Conductor,
    /// Drives microbatches.
    Trainer,
    /// Trains a stage.
    Peer,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Operator, Self::Gateway, Self::Stage, Self::Conductor, Self::Trainer, Self::Peer];

    /// As certificates have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Gateway => "gateway",
            Self::Stage => "stage",
            Self::Conductor => "conductor",
            Self::Trainer => "trainer",
            Self::Peer => "peer",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A certificate that names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoCaller {
    /// The connection has none.
    #[error("the connection has no certificate")]
    Missing,
    /// It is no X.509 certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It has no common name, or several.
    #[error("the certificate does not have exactly one name (CN)")]
    Unnamed,
    /// It has no role, or several, or one that is not known.
    #[error(
        "the certificate of {0} does not have exactly one known role (OU): it was issued by an older or a newer version of the operator, which replaces its holder"
    )]
    WithoutRole(String),
}

/// The other end of a connection, as its certificate names it. Only [`Rpc::admit`](crate::access::Rpc::admit) gives one to a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// What it does.
    pub role: Role,
    /// Its name. The gateways of a swarm share a certificate, so for them it is that of all of them.
    pub name: Arc<str>,
    /// Public key (DER); empty where connections have none. A renewed certificate has the key of the one before.
    key: Arc<[u8]>,
}

impl Caller {
    /// The holder of a certificate (DER).
    ///
    /// # Errors
    /// When it does not have exactly one name and one role.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, NoCaller> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| NoCaller::Unreadable)?;
        let subject = parsed.subject();
        let name = only(subject.iter_common_name()).ok_or(NoCaller::Unnamed)?;
        let role = only(subject.iter_organizational_unit()).and_then(Role::parse);
        let role = role.ok_or_else(|| NoCaller::WithoutRole(name.to_owned()))?;
        Ok(Self { role, name: name.into(), key: parsed.public_key().raw.into() })
    }

    /// Somebody whose connection proves nothing: for plain text on loopback, and tests.
    #[must_use]
    pub fn unproven(role: Role, name: &str) -> Self {
        Self { role, name: name.into(), key: Arc::default() }
    }

    /// What its signatures are known by. Of a connection that proves nothing it is a key that verifies nothing.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_der(&self.key)
    }

    /// Whether both have the same key: one process, whatever connections it makes and however often its certificate is renewed.
    #[must_use]
    pub fn is_same_holder(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Whether it may call itself `name`: as its certificate does. A gateway adds to that what tells it from the others that share it,
    /// as a Deployment names its pods: `NAME-SUFFIX`.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        match name.strip_prefix(&*self.name) {
            Some("") => true,
            Some(suffix) => self.role == Role::Gateway && suffix.starts_with('-'),
            None => false,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text of an attribute that is there exactly once.
fn only<'a>(mut all: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let first = all.next()?.as_str().ok().filter(|text| !text.is_empty());
    first.filter(|_| all.next().is_none())
}
