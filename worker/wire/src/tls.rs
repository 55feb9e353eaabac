//! The swarm's own certificates: a peer talks to nobody outside.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// Certificates that cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}; the operator puts ca.crt, tls.crt and tls.key there", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has no certificate or key.
    #[error("the certificates of {0} cannot be used")]
    Unusable(String, #[source] tonic::transport::Error),
}

/// PEM of the swarm's authority and of one process.
#[derive(Clone)]
pub struct TlsFiles {
    authority: Certificate,
    identity: Identity,
}

impl TlsFiles {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        };
        Ok(Self::from_pem(&read("ca.crt")?, &read("tls.crt")?, &read("tls.key")?))
    }

    /// From PEM in memory.
    #[must_use]
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Self {
        Self { authority: Certificate::from_pem(authority), identity: Identity::from_pem(certificate, key) }
    }

    /// For a client that expects a server certificate for `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(self.authority.clone())
            .identity(self.identity.clone())
            .domain_name(name)
    }

    /// For a server that wants a certificate of the same authority from its clients.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.authority.clone())
    }
}
