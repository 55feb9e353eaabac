//! The swarm's own certificates: a process talks to nobody outside.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// Certificates that cannot be used.
#[derive(Debug, Error)]
#[error("cannot read {path}; the operator puts ca.crt, tls.crt and tls.key there", path = path.display())]
pub struct TlsError {
    /// The file that cannot be read.
    pub path: PathBuf,
    source: std::io::Error,
}

/// PEM of the swarm's authority, and of the certificate and key of one process.
#[derive(Clone, Default, Deserialize, Serialize)]
pub struct TlsFiles {
    /// Certificate of the authority: `ca.crt`.
    pub authority: String,
    /// Certificate of the process: `tls.crt`.
    pub certificate: String,
    /// Its key, PKCS#8: `tls.key`.
    pub key: String,
}

impl TlsFiles {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| TlsError { path, source })
        };
        Ok(Self { authority: read("ca.crt")?, certificate: read("tls.crt")?, key: read("tls.key")? })
    }

    fn authority(&self) -> Certificate {
        Certificate::from_pem(&self.authority)
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    /// For a client that expects a server certificate for `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(self.authority()).identity(self.identity()).domain_name(name)
    }

    /// For a server that wants a certificate of the same authority from its clients.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity()).client_ca_root(self.authority())
    }
}
