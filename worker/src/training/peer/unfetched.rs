//! Why a stage could not be had.

use dunlin_model::ModelError;
use dunlin_protocol::training::FetchFailure;

/// Why a stage could not be had.
pub(super) enum Unfetched {
    /// The conductor is told.
    Failed(FetchFailure, String),
    /// The model that training goes on from cannot be used: that stays so.
    Unusable(anyhow::Error),
}

impl Unfetched {
    pub(super) fn from_model(error: anyhow::Error) -> Self {
        let unusable = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<ModelError>().is_some_and(|e| !e.is_unreachable())
        };
        if error.chain().any(unusable) {
            return Self::Unusable(error.context("the model that training goes on from cannot be used"));
        }
        format!("{error:#}").into()
    }
}

impl From<String> for Unfetched {
    fn from(why: String) -> Self {
        Self::Failed(FetchFailure::Passing, why)
    }
}
