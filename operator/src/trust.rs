//! Who trusts whom in a swarm: the authority that the operator keeps in a Secret, its own certificate, and one for each pod.

use std::sync::Arc;
use std::time::Duration;

use dunlin_wire::{Authority, Role, TlsFiles, Validity};
use tokio::time::Instant;

use crate::apply::certificates::{CertificateError, authority_secret, generate, load, names};
use crate::apply::holds::HoldKey;
use crate::apply::{Applied, Applier};
use crate::error::Error;
use crate::labels::Owner;
use crate::observe::version;

const DAY_S: u64 = 24 * 3600;
/// How long a certificate is valid.
const VALID_S: u64 = 90 * DAY_S;
const VALID: Validity = Validity::For(Duration::from_secs(VALID_S));
/// One that ends sooner is renewed.
const RENEWED_BEFORE_END_S: u64 = 30 * DAY_S;
/// Certificates are looked at so often.
pub const LOOK: Duration = Duration::from_secs(DAY_S);
/// The holder of a younger one need not be looked at: it is as old as its certificate, or older.
pub const YOUNG: Duration = Duration::from_secs(VALID_S - RENEWED_BEFORE_END_S - DAY_S);

/// The authority of a swarm and our own certificate from it.
#[derive(Clone)]
pub struct Trust {
    /// Signs leaves.
    pub authority: Arc<Authority>,
    /// Certificate and key that the operator calls workers with.
    pub identity: Arc<TlsFiles>,
}

impl Trust {
    /// The authority that an earlier leader left, or a new one.
    ///
    /// # Errors
    /// When the API server does not answer, or its Secret cannot be used.
    pub async fn restore(owner: &Owner, applier: &Applier, applied: &mut Applied) -> Result<Self, Error> {
        let key = authority_key(owner);
        applied.holds.check(&key, 0, Instant::now())?;
        let found = applier.secret(&owner.namespace, &owner.authority()).await?;
        let secret = match found {
            Some(secret) => secret,
            None => {
                let ours = generate(owner).map_err(Arc::new)?;
                let went = applier.create_or_get(&authority_secret(owner, &ours)).await;
                applied.holds.note(key.clone(), 0, went, Instant::now(), applier.draw())?
            }
        };
        let authority = load(owner, &secret.data.unwrap_or_default()).map_err(Arc::new)?;
        applied.found(key, version(&secret.metadata), Instant::now());
        let identity = issue(&authority, Role::Operator, &names(owner, Role::Operator, ""))?;
        Ok(Self { authority: Arc::new(authority), identity: Arc::new(identity) })
    }

    /// Takes another certificate for itself before its own is over.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn renew_own(&mut self, owner: &Owner) -> Result<(), Error> {
        if is_old(&self.identity) {
            self.identity = Arc::new(self.issue(Role::Operator, &names(owner, Role::Operator, ""))?);
        }
        Ok(())
    }

    /// Puts the authority's Secret back, which somebody has changed or deleted: all pods have certificates of this one.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn keep(&self, owner: &Owner, applier: &Applier, applied: &mut Applied) -> Result<(), Error> {
        let version = applier.put(applied, &authority_secret(owner, &self.authority), 0).await?;
        applied.found(authority_key(owner), version, Instant::now());
        Ok(())
    }

    /// A certificate with `role` for `names`.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue(&self, role: Role, names: &[String]) -> Result<TlsFiles, Error> {
        issue(&self.authority, role, names)
    }

    /// A later certificate for the holder of `files`, which keeps its key.
    ///
    /// # Errors
    /// When its key or a name is none.
    pub fn renew(&self, files: &TlsFiles, role: Role, names: &[String]) -> Result<TlsFiles, Error> {
        let renewed = self.authority.renew(&files.key, role, names, VALID);
        Ok(renewed.map_err(|failure| Arc::new(CertificateError::from(failure)))?)
    }
}

/// Whether it is time to renew a certificate.
#[must_use]
pub fn is_old(files: &TlsFiles) -> bool {
    files.remaining().is_some_and(|left| left.as_secs() < RENEWED_BEFORE_END_S)
}

/// The Secret with the authority.
pub fn authority_key(owner: &Owner) -> HoldKey {
    ("Secret".to_owned(), owner.authority())
}

fn issue(authority: &Authority, role: Role, names: &[String]) -> Result<TlsFiles, Error> {
    Ok(authority.issue(role, names, VALID).map_err(|failure| Arc::new(CertificateError::from(failure)))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::owner;

    #[test]
    fn certificates_are_renewed_a_month_before_they_end_and_keep_their_key() {
        let authority = Arc::new(Authority::generate("test").unwrap());
        let names = names(&owner(), Role::Operator, "");
        let valid = |days: u64| {
            let validity = Validity::For(Duration::from_secs(days * DAY_S));
            Arc::new(authority.issue(Role::Operator, &names, validity).unwrap())
        };
        let mut trust = Trust { identity: valid(31), authority: Arc::clone(&authority) };
        let before = Arc::clone(&trust.identity);
        trust.renew_own(&owner()).unwrap();
        assert!(Arc::ptr_eq(&before, &trust.identity), "it has more than a month left");
        trust.identity = valid(29);
        assert!(is_old(&trust.identity));
        let renewed = trust.renew(&trust.identity, Role::Operator, &names).unwrap();
        assert_eq!(renewed.key, trust.identity.key);
        assert!(!is_old(&renewed) && renewed.remaining() > Some(Duration::from_secs(89 * DAY_S)));
        trust.renew_own(&owner()).unwrap();
        assert!(!is_old(&trust.identity));
    }
}
