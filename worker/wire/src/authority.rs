//! The authority of a swarm: it says who holds which name in which role.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use thiserror::Error;
use x509_parser::pem::{Pem, parse_x509_pem};

use crate::identity::Role;
use crate::tls::TlsFiles;

/// An authority is bound to the life of its swarm, not to a calendar: deleting the swarm deletes its key.
const AUTHORITY_FROM: (i32, u8, u8) = (2020, 1, 1);
const AUTHORITY_TO: (i32, u8, u8) = (2120, 1, 1);
/// Clocks of machines may differ by so much.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);

/// Why there is no authority, or no certificate of it.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The library refuses, mostly because of a name.
    #[error("cannot make a certificate for {holder}")]
    Make {
        /// Name of the process that it was for.
        holder: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// What was kept of an authority is no certificate and key.
    #[error("the certificate and key of the authority cannot be used")]
    Unusable(#[source] rcgen::Error),
    /// They do not belong together.
    #[error("the key is not that of the authority's certificate")]
    OtherKey,
}

/// How long a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// As long as its authority: of processes that nobody can give another one.
    Authority,
    /// For so long from now on, and from a day ago.
    For(Duration),
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
        set_period(&mut params, Validity::Authority);
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
    pub fn issue(
        &self,
        role: Role,
        names: &[String],
        validity: Validity,
    ) -> Result<TlsFiles, AuthorityError> {
        let holder = names.first().cloned().unwrap_or_default();
        let key = KeyPair::generate().map_err(|source| AuthorityError::Make { holder, source })?;
        self.certify(key, role, names, validity)
    }

    /// The same for the holder of `key` (PEM), which it keeps: others know it by that.
    ///
    /// # Errors
    /// When the key is none, there is no name, or one is no DNS name or IP address.
    pub fn renew(
        &self,
        key: &str,
        role: Role,
        names: &[String],
        validity: Validity,
    ) -> Result<TlsFiles, AuthorityError> {
        self.certify(KeyPair::from_pem(key).map_err(AuthorityError::Unusable)?, role, names, validity)
    }

    fn certify(
        &self,
        key: KeyPair,
        role: Role,
        names: &[String],
        validity: Validity,
    ) -> Result<TlsFiles, AuthorityError> {
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
        set_period(&mut params, validity);
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?.pem();
        Ok(TlsFiles { authority: self.certificate.clone(), certificate, key: key.serialize_pem() })
    }
}

fn set_period(params: &mut CertificateParams, validity: Validity) {
    let day = |(year, month, day)| date_time_ymd(year, month, day);
    (params.not_before, params.not_after) = match validity {
        Validity::Authority => (day(AUTHORITY_FROM), day(AUTHORITY_TO)),
        Validity::For(time) => {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = day((1970, 1, 1)) + since_1970;
            (now - CLOCKS_DIFFER, now + time)
        }
    };
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::identity::Caller;

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
    fn a_renewed_certificate_has_the_key_of_its_holder_and_its_own_end() {
        let authority = Authority::generate("ours").unwrap();
        let names = ["a".to_owned()];
        let days = |days: u64| Validity::For(Duration::from_secs(days * 24 * 3600));
        let first = authority.issue(Role::Stage, &names, days(1)).unwrap();
        let again = authority.renew(&first.key, Role::Stage, &names, days(90)).unwrap();
        let other = authority.issue(Role::Stage, &names, days(90)).unwrap();
        assert_eq!(again.key, first.key);
        let seconds = |files: &TlsFiles| files.remaining().unwrap().as_secs();
        assert!(seconds(&first) <= 24 * 3600 && seconds(&again) > 89 * 24 * 3600);
        let caller = |files: &TlsFiles| Caller::from_certificate(&files.certificate_der().unwrap()).unwrap();
        assert!(caller(&first).is_same_holder(&caller(&again)));
        assert!(!caller(&first).is_same_holder(&caller(&other)));
        assert!(authority.renew("no key", Role::Stage, &names, days(1)).is_err());
        let over = authority.issue(Role::Stage, &names, Validity::For(Duration::ZERO)).unwrap();
        assert_eq!(over.remaining(), Some(Duration::ZERO));
    }

    #[test]
    fn a_certificate_has_a_name() {
        let authority = Authority::generate("ours").unwrap();
        assert!(authority.issue(Role::Stage, &[], Validity::Authority).is_err());
        assert!(authority.issue(Role::Stage, &[String::new()], Validity::Authority).is_err());
    }
}
