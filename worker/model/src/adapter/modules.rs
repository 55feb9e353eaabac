//! Beside what an adapter may be: the modules of a block, as PEFT names them.

use crate::config::ModelConfig;
use crate::families::{family::Fused, named};
use crate::spec::Projection;

/// A module, and the matrices that it is, one behind the other.
pub(super) struct Module {
    pub(super) name: &'static str,
    pub(super) parts: &'static [Projection],
}

/// All of a model. In families where several matrices are one module, each of them may have an adapter of its own as well.
pub(super) fn of(config: &ModelConfig) -> impl Iterator<Item = Module> {
    let fused = named(&config.architecture).fused.iter().map(fused);
    fused.chain(
        Projection::ALL
            .iter()
            .map(|which| Module { name: which.module(), parts: std::slice::from_ref(which) }),
    )
}

fn fused(fused: &'static Fused) -> Module {
    Module { name: fused.module(), parts: fused.parts }
}
