//! The swarm's own certificates: a process talks to nobody outside. They may be renewed while it runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Files are looked at again, when somebody connects, after this long.
const LOOK: Duration = Duration::from_secs(10);

/// Certificates that cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}; the operator puts ca.crt, tls.crt and tls.key there", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// They are no certificates, or do not belong together.
    #[error("the certificates of this process cannot be used: {0}")]
    Unusable(String),
}

impl TlsError {
    fn unusable(why: impl ToString) -> Self {
        Self::Unusable(why.to_string())
    }
}

/// PEM of the swarm's authority, and of the certificate and key of one process.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
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
            std::fs::read_to_string(&path).map_err(|source| TlsError::Read { path, source })
        };
        Ok(Self { authority: read("ca.crt")?, certificate: read("tls.crt")?, key: read("tls.key")? })
    }

    /// For a client that expects a server certificate for `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> ClientTlsConfig {
        let identity = Identity::from_pem(&self.certificate, &self.key);
        let authority = Certificate::from_pem(&self.authority);
        ClientTlsConfig::new().ca_certificate(authority).identity(identity).domain_name(name)
    }

    /// For a server that wants a certificate of the same authority from its clients.
    ///
    /// # Errors
    /// When they are no certificates, or do not belong together.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        let pem = |error: rustls::pki_types::pem::Error| TlsError::unusable(error);
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes()).map_err(pem)?;
        roots.add(authority).map_err(TlsError::unusable)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(pem)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::unusable)?
            .with_client_cert_verifier(clients.build().map_err(TlsError::unusable)?)
            .with_single_cert(vec![self.certificate_der()?], key)
            .map_err(TlsError::unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// The certificate of the process.
    ///
    /// # Errors
    /// When it is none.
    pub fn certificate_der(&self) -> Result<CertificateDer<'static>, TlsError> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(TlsError::unusable)
    }

    /// How long its certificate is still valid; zero when it is not; `None` when it is no certificate.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let der = self.certificate_der().ok()?;
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let end_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Some(Duration::from_secs(end_s.saturating_sub(now_s)))
    }
}

/// Who a process is to others, for connections that it makes and accepts from now on.
#[derive(Clone)]
pub struct Credentials(Arc<Shared>);

struct Shared {
    /// Where renewed ones appear.
    folder: Option<PathBuf>,
    now: Mutex<Current>,
}

struct Current {
    files: TlsFiles,
    server: Arc<ServerConfig>,
    looked: Instant,
}

impl Credentials {
    /// Those in `files`, for ever.
    ///
    /// # Errors
    /// When they are no certificates, or do not belong together.
    pub fn fixed(files: TlsFiles) -> Result<Self, TlsError> {
        Self::new(files, None)
    }

    /// Those in `folder`, whatever they are when a connection is made.
    ///
    /// # Errors
    /// When they cannot be read or used now.
    pub fn in_folder(folder: &Path) -> Result<Self, TlsError> {
        Self::new(TlsFiles::load(folder)?, Some(folder.to_owned()))
    }

    fn new(files: TlsFiles, folder: Option<PathBuf>) -> Result<Self, TlsError> {
        let server = Arc::new(files.server()?);
        Ok(Self(Arc::new(Shared {
            folder,
            now: Mutex::new(Current { files, server, looked: Instant::now() }),
        })))
    }

    /// For a client that expects a server certificate for `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> ClientTlsConfig {
        self.with_current(|now| now.files.client(name))
    }

    /// For a server that wants a certificate of the same authority from its clients.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        self.with_current(|now| Arc::clone(&now.server))
    }

    /// Reads the files again now, if there are any. Those that cannot be used, a renewal of which a part is written say, change nothing.
    ///
    /// # Errors
    /// Why they cannot be used.
    pub fn refresh(&self) -> Result<(), TlsError> {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.refresh(&mut now)
    }

    fn with_current<T>(&self, use_it: impl FnOnce(&Current) -> T) -> T {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.looked.elapsed() >= LOOK
            && let Err(error) = self.0.refresh(&mut now)
        {
            warn!(%error, "the certificates stay as they are");
        }
        use_it(&now)
    }
}

impl Shared {
    fn refresh(&self, now: &mut Current) -> Result<(), TlsError> {
        now.looked = Instant::now();
        let Some(folder) = &self.folder else { return Ok(()) };
        let files = TlsFiles::load(folder)?;
        if files != now.files {
            now.server = Arc::new(files.server()?);
            now.files = files;
            info!("the certificate of this process was renewed");
        }
        Ok(())
    }
}
