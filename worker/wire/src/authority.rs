//! The authority of a swarm: it says who holds which name in which role.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use thiserror::Error;
use x509_parser::pem::{Pem, parse_x509_pem};

use crate::identity::Role;
use crate::tls::TlsFiles;

/// Certificates are bound to the life of a swarm and its processes, not to a calendar: deleting the swarm deletes its authority's key, and
/// a clock that is wrong keeps nobody out.
const NOT_BEFORE: (i32, u8, u8) = (2020, 1, 1);
const NOT_AFTER: (i32, u8, u8) = (2120, 1, 1);

/// Why there is no authority, or no certificate of it.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The library refuses, mostly because of a name.
    #[error("cannot make a certificate for {holder}")]
    Make {
        /// Whom it was for.
        holder: String,
        /// The reason.
        source: rcgen::Error,
    },
    /// What was kept of an authority is no certificate and key.
    #[error("the certificate and key of the authority cannot be used")]
    Unusable(#[source] rcgen::Error),
    /// They do not belong together.
    #[error("the key is not that of the authority's certificate")]
    OtherKey,
}

/// A certificate authority.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority called `name`.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate(name: &str) -> Result<Self, AuthorityError> {
        let make = |source| AuthorityError::Make { holder: name.to_owned(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params);
        let key = KeyPair::generate().map_err(make)?;
        let certificate = params.self_signed(&key).map_err(make)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), issuer: Issuer::new(params, key) })
    }

    /// An authority from its certificate and key in PEM.
    ///
    /// # Errors
    /// When they are not that, or not of one authority.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pem(key).map_err(AuthorityError::Unusable)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, pair).map_err(AuthorityError::Unusable)?;
        let certifies = |pem: &Pem| {
            pem.parse_x509()
                .is_ok_and(|ca| *ca.public_key().subject_public_key.data == *issuer.key().public_key_raw())
        };
        if !parse_x509_pem(certificate.as_bytes()).is_ok_and(|(_, pem)| certifies(&pem)) {
            return Err(AuthorityError::OtherKey);
        }
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), issuer })
    }

    /// Its certificate in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key in PEM.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate with `role` for both ends of a connection. Servers are found under all of `names`; clients go by the first.
    ///
    /// # Errors
    /// When there is no name, or one is no DNS name or IP address.
    pub fn issue(&self, role: Role, names: &[String]) -> Result<TlsFiles, AuthorityError> {
        let holder = names.first().cloned().unwrap_or_default();
        let make = |source| AuthorityError::Make { holder: holder.clone(), source };
        if holder.is_empty() {
            return Err(make(rcgen::Error::InvalidNameType));
        }
        let mut params = CertificateParams::new(names).map_err(make)?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, holder.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params);
        let key = KeyPair::generate().map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?.pem();
        Ok(TlsFiles { authority: self.certificate.clone(), certificate, key: key.serialize_pem() })
    }
}

fn set_validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(NOT_BEFORE.0, NOT_BEFORE.1, NOT_BEFORE.2);
    params.not_after = date_time_ymd(NOT_AFTER.0, NOT_AFTER.1, NOT_AFTER.2);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_kept_as_two_files_that_belong_together() {
        let (ours, theirs) = (Authority::generate("ours").unwrap(), Authority::generate("theirs").unwrap());
        let again = Authority::from_pem(ours.certificate(), ours.key()).unwrap();
        assert_eq!((again.certificate(), again.key()), (ours.certificate(), ours.key()));
        let mixed = Authority::from_pem(ours.certificate(), theirs.key()).err();
        assert!(matches!(mixed, Some(AuthorityError::OtherKey)), "{mixed:?}");
        for (certificate, key) in [("", ours.key()), (ours.certificate(), "")] {
            assert!(matches!(Authority::from_pem(certificate, key), Err(AuthorityError::Unusable(_))));
        }
    }

    #[test]
    fn a_certificate_has_a_name() {
        let authority = Authority::generate("ours").unwrap();
        assert!(authority.issue(Role::Stage, &[]).is_err());
        assert!(authority.issue(Role::Stage, &[String::new()]).is_err());
    }
}
