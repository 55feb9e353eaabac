//! Which model a gateway is of. Its tokenizer is that model's, so a topology of another one is not obeyed: no token of one model ever reaches a stage
//! of another. A swarm whose model is changed has gateways and stages of both for a while.

use dunlin_swarm::{Epoch, Topology, is_other_model};
use thiserror::Error;

/// A topology is of another model than the gateway that got it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OtherModel {
    /// The gateway has had a topology of its own model: the swarm's model was changed since.
    #[error(
        "the swarm has another model since epoch {epoch}; this gateway is of the one before and begins no more answers: ask again, a gateway of the \
         new model answers"
    )]
    Changed {
        /// Epoch of that topology.
        epoch: Epoch,
    },
    /// It has had none yet.
    #[error(
        "the swarm's newest plan, of epoch {epoch}, is of another model; this gateway waits for one of its own model, which comes when stages of it \
         are there"
    )]
    Awaited {
        /// Epoch of that topology.
        epoch: Epoch,
    },
}

impl OtherModel {
    fn epoch(&self) -> Epoch {
        let (Self::Changed { epoch } | Self::Awaited { epoch }) = self;
        *epoch
    }
}

/// The model of a gateway, and whether the swarm has another one.
#[derive(Debug)]
pub(super) struct OwnModel {
    /// Digest of its source; empty until it is known.
    digest: String,
    /// The newest topology of another model, as long as none of ours is newer.
    other: Option<OtherModel>,
}

impl OwnModel {
    /// With an empty `digest`, that of the first topology that has one.
    pub(super) fn new(digest: String) -> Self {
        Self { digest, other: None }
    }

    /// Whether `topology` is of this model. `obeyed`: the epoch of the topology that is obeyed so far.
    pub(super) fn admit(&mut self, topology: &Topology, obeyed: Option<Epoch>) -> Result<(), OtherModel> {
        let epoch = topology.epoch;
        let is_newest = self.other.as_ref().is_none_or(|other| other.epoch() <= epoch);
        if is_other_model(&self.digest, &topology.model.digest) {
            let other = match obeyed {
                Some(_) => OtherModel::Changed { epoch },
                None => OtherModel::Awaited { epoch },
            };
            if is_newest {
                self.other = Some(other.clone());
            }
            return Err(other);
        }
        if self.digest.is_empty() {
            self.digest.clone_from(&topology.model.digest);
        }
        if is_newest {
            self.other = None;
        }
        Ok(())
    }

    /// The swarm has another model, as far as is known here.
    pub(super) fn other(&self) -> Option<&OtherModel> {
        self.other.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::ModelId;

    use super::*;

    fn topology(epoch: Epoch, digest: &str) -> Topology {
        let model = ModelId { name: "m".to_owned(), digest: digest.to_owned() };
        Topology { epoch, model, ..Topology::default() }
    }

    #[test]
    fn who_is_told_no_model_is_of_that_of_the_first_topology() {
        let mut own = OwnModel::new(String::new());
        assert_eq!(own.admit(&topology(1, ""), None), Ok(()));
        assert_eq!(own.admit(&topology(2, "a"), Some(1)), Ok(()));
        assert_eq!(own.admit(&topology(3, "b"), Some(2)), Err(OtherModel::Changed { epoch: 3 }));
    }

    #[test]
    fn the_newest_topology_says_whether_the_swarm_has_another_model() {
        let mut own = OwnModel::new("a".to_owned());
        assert_eq!(own.admit(&topology(4, "b"), None), Err(OtherModel::Awaited { epoch: 4 }));
        assert_eq!(own.other(), Some(&OtherModel::Awaited { epoch: 4 }));
        assert_eq!(own.admit(&topology(5, "a"), None), Ok(()));
        assert_eq!(own.other(), None);
        assert_eq!(own.admit(&topology(7, "b"), Some(5)), Err(OtherModel::Changed { epoch: 7 }));
        // Two that were on their way for longer change nothing.
        assert_eq!(own.admit(&topology(6, "a"), Some(5)), Ok(()));
        assert_eq!(own.admit(&topology(6, "b"), Some(5)), Err(OtherModel::Changed { epoch: 6 }));
        assert_eq!(own.other(), Some(&OtherModel::Changed { epoch: 7 }));
        // The manifest was changed back.
        assert_eq!(own.admit(&topology(8, "a"), Some(6)), Ok(()));
        assert_eq!(own.other(), None);
    }
}
