//! What is served and not trained.

use crate::config::ModelConfig;
use crate::families::named;
use crate::spec::BlockSpec;

/// Why a model is not trained here, if it is not, said after its name: what it does that has no way back, or cannot be written as its family's files have it.
#[must_use]
pub fn untrained(config: &ModelConfig) -> Option<&'static str> {
    let family = named(&config.architecture);
    let of_family =
        || (!family.fused.is_empty()).then_some("has matrices that are one tensor").or(family.untrained);
    let of_embedding = || config.embedding_scale.map(|_| "scales its embedding");
    config.blocks().find_map(BlockSpec::untrained).or_else(of_family).or_else(of_embedding)
}
