//! Writes that failed rest for a while, whatever wakes us meanwhile: what the API server has just refused it refuses again, and each attempt
//! costs it a call. Pure.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::error::{Error, WriteAttempt};

/// Kind and name of an object, or of what stands for several.
pub type HoldKey = (String, String);

/// The last failure of each write.
#[derive(Default)]
pub struct Holds(BTreeMap<HoldKey, Hold>);

struct Hold {
    /// Fingerprint of what was written: something else is tried at once.
    of: u64,
    times: u32,
    until: Instant,
    failure: Error,
}

impl Holds {
    /// The last failure of `key`, as long as it rests.
    ///
    /// # Errors
    /// That failure.
    pub fn check(&self, key: &HoldKey, of: u64, now: Instant) -> Result<(), Error> {
        match self.0.get(key).filter(|hold| hold.of == of && now < hold.until) {
            Some(hold) => {
                Err(attempted(hold.failure.clone(), WriteAttempt { times: hold.times, held: true }))
            }
            None => Ok(()),
        }
    }

    /// Remembers how writing `key` went, and numbers the failure; `random` spreads how long it rests. Of one without an answer nothing is known, so it does not rest.
    ///
    /// # Errors
    /// The failure that was passed in.
    pub fn note<T>(
        &mut self,
        key: HoldKey,
        of: u64,
        went: Result<T, Error>,
        now: Instant,
        random: u64,
    ) -> Result<T, Error> {
        let failure = match went {
            Ok(made) => {
                self.0.remove(&key);
                return Ok(made);
            }
            Err(failure @ Error::Api { .. }) => failure,
            Err(failure) => return Err(failure),
        };
        let before = self.0.get(&key).filter(|hold| hold.of == of).map_or(0, |hold| hold.times);
        let times = before.saturating_add(1);
        let until = now + failure.rest(times, random);
        self.0.insert(key, Hold { of, times, until, failure: failure.clone() });
        Err(attempted(failure, WriteAttempt { times, held: false }))
    }
}

fn attempted(failure: Error, attempt: WriteAttempt) -> Error {
    match failure {
        Error::Api { action, source, .. } => Error::Api { action, source, attempt },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn failure(code: u16) -> Error {
        let status = kube::core::Status { code, ..Default::default() };
        Error::api("apply".into(), kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_refusal_rests_for_a_minute_unless_something_else_is_written() {
        let (mut holds, now) = (Holds::default(), Instant::now());
        let key = || ("Pod".to_owned(), "spot".to_owned());
        assert!(holds.check(&key(), 1, now).is_ok());
        let first = holds.note(key(), 1, Err::<(), _>(failure(403)), now, 7).unwrap_err();
        assert!(!first.is_held() && first.trouble().is_none());
        let later = now + Duration::from_secs(59);
        assert!(holds.check(&key(), 1, later).unwrap_err().is_held());
        assert!(holds.check(&key(), 2, later).is_ok(), "a changed manifest");
        let due = now + Duration::from_secs(60);
        assert!(holds.check(&key(), 1, due).is_ok());
        let second = holds.note(key(), 1, Err::<(), _>(failure(403)), due, 7).unwrap_err();
        assert!(second.trouble().is_some(), "it lasts");
        assert!(holds.note(key(), 1, Ok(()), due, 7).is_ok());
        assert!(holds.check(&key(), 1, due).is_ok());
    }

    #[test]
    fn other_failures_rest_longer_and_longer_and_what_is_unknown_not_at_all() {
        let (mut holds, now) = (Holds::default(), Instant::now());
        let key = || ("Service".to_owned(), "m".to_owned());
        let _ = holds.note(key(), 1, Err::<(), _>(failure(503)), now, 7);
        assert!(holds.check(&key(), 1, now + Duration::from_millis(200)).is_err());
        assert!(holds.check(&key(), 1, now + Duration::from_millis(500)).is_ok());
        let silent = Error::Timeout { action: "apply".into(), limit_s: 10 };
        let mut holds = Holds::default();
        let _ = holds.note(key(), 1, Err::<(), _>(silent), now, 7);
        assert!(holds.check(&key(), 1, now).is_ok());
    }
}
