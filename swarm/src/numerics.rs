//! Which bits a process computes.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// A class of numerics: two processes of one class give the same bits for the same rows, weights and gradients, whatever machines they run on and however the work
/// is cut.
///
/// What has to be one sequence of bits stays within a class: all rows of a session that has begun (so all hops of a route are of one class), and all steps
/// of a run. A swarm may have several for a while, as long as each of its sessions has one.
///
/// At present a class is a version of the arithmetic (`kernels/ARITHMETIC.md`), because everything that computes by one version gives the same bits. A device
/// that gives other bits by the same version will be a further class. Which class a process is of is decided in one place, where kernels and
/// these words meet: `dunlin_model::OWN_NUMERICS`. Whoever tells it to others, in messages, manifests and texts, calls it `arithmetic`, as the fields that have it are called.
///
/// Of two classes, the one with the later version is the greater.
///
/// A process that does not say its class is `None`. It may be of any, so it is of the same as others that do not say theirs, and of no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumericsClass(NonZeroU32);

impl NumericsClass {
    /// Of the first version: that of everybody before there was a second one to be told from.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// From the number that stands for it in messages, the version of the arithmetic; 0 stands for nothing said.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(version) => Some(Self(version)),
            None => None,
        }
    }

    /// The number that stands for what somebody said, or did not say, in messages, JSON and texts.
    #[must_use]
    pub fn number_of(said: Option<Self>) -> u32 {
        said.map_or(0, Self::version)
    }

    /// The version of the arithmetic.
    #[must_use]
    pub const fn version(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for NumericsClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::NumericsClass;

    #[test]
    fn a_class_is_its_version_and_nothing_said_is_zero() {
        for number in [0, 1, 3, u32::MAX] {
            assert_eq!(NumericsClass::number_of(NumericsClass::from_number(number)), number);
        }
        assert_eq!(NumericsClass::from_number(0), None);
        assert_eq!(NumericsClass::from_number(1), Some(NumericsClass::FIRST));
    }

    #[test]
    fn who_says_nothing_is_of_no_class_and_later_versions_are_greater() {
        let of = NumericsClass::from_number;
        assert!(of(0) < of(1) && of(1) < of(3));
        assert!(of(0) == of(0) && of(0) != of(1));
    }

    #[test]
    fn a_class_is_written_as_its_number() {
        let third = NumericsClass::from_number(3).unwrap();
        assert_eq!(third.to_string(), "3");
        assert_eq!(serde_json::to_string(&third).unwrap(), "3");
        assert_eq!(serde_json::from_str::<NumericsClass>("3").unwrap(), third);
        assert!(serde_json::from_str::<NumericsClass>("0").is_err());
    }
}
