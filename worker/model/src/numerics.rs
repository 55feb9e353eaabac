//! Which bits this program computes.

use dunlin_kernels::ARITHMETIC_VERSION;
use dunlin_swarm::NumericsClass;

/// The class of everything that this program computes: all of its kernels give the bits of one version of the arithmetic on every machine.
pub const OWN_NUMERICS: NumericsClass = match NumericsClass::from_number(ARITHMETIC_VERSION) {
    Some(class) => class,
    None => panic!("versions of the arithmetic count from 1"),
};
