//! Which topologies a stage obeys, and what the newest gives to it. Pure.

use std::fmt;

use dunlin_swarm::{Epoch, PeerName, Topology, is_other_model};

use super::loader::Hold;

/// What a stage obeys.
#[derive(Debug)]
pub struct Obeyed {
    name: PeerName,
    /// Of the model's source; that of the first topology with this stage when nobody has told it, and empty before there is one.
    model_digest: String,
    epoch: Epoch,
    hold: Hold,
}

/// What a topology means for a stage that obeys it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// The stage is not in it.
    Nothing,
    /// It has the same layers as before.
    Same,
    /// It has others.
    Others,
}

/// Why a topology is not obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotObeyed {
    /// A newer one is.
    Older {
        /// That of the topology.
        given: Epoch,
        /// What is obeyed.
        obeyed: Epoch,
    },
    /// It is of another model.
    OtherModel {
        /// Epoch of the topology.
        given: Epoch,
        /// Digest of its model.
        theirs: String,
        /// Digest of the stage's.
        own: String,
    },
}

impl fmt::Display for NotObeyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older { given, obeyed } => write!(f, "epoch {given} is older than {obeyed}"),
            Self::OtherModel { given, theirs, own } => {
                write!(f, "epoch {given} is of the model {theirs:.64}, and this stage of {own}")
            }
        }
    }
}

impl Obeyed {
    /// Nothing yet. With an empty `model_digest` the stage is of the model of the first topology that it is in.
    pub fn new(name: PeerName, model_digest: String) -> Self {
        Self { name, model_digest, epoch: 0, hold: Hold::default() }
    }

    /// Rule: older epochs and other models are not obeyed. Who is not in a topology goes on with what it has.
    ///
    /// # Errors
    /// Why it is not obeyed.
    pub fn take(&mut self, topology: &Topology) -> Result<Assigned, NotObeyed> {
        let (given, obeyed, theirs) = (topology.epoch, self.epoch, &topology.model.digest);
        if obeyed > given {
            return Err(NotObeyed::Older { given, obeyed });
        }
        if is_other_model(&self.model_digest, theirs) {
            let (theirs, own) = (theirs.clone(), self.model_digest.clone());
            return Err(NotObeyed::OtherModel { given, theirs, own });
        }
        self.epoch = given;
        let Some(own) = topology.peer(&self.name) else { return Ok(Assigned::Nothing) };
        if self.model_digest.is_empty() {
            self.model_digest.clone_from(theirs);
        }
        let hold = Hold { span: own.span, shadows: own.shadows.clone() };
        if hold == self.hold {
            return Ok(Assigned::Same);
        }
        self.hold = hold;
        Ok(Assigned::Others)
    }

    /// Epoch of the newest; 0 before there is any.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The layers that are given to this stage.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Digest of its model's source; empty while it is not known.
    pub fn model_digest(&self) -> &str {
        &self.model_digest
    }
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::{Layers, ModelId, TopologyPeer};

    use super::*;

    /// One in which `peer` has the layers up to `end`.
    fn topology(epoch: Epoch, digest: &str, peer: &str, end: u32) -> Topology {
        let peer = TopologyPeer { name: peer.into(), span: Layers::new(0, end), ..TopologyPeer::default() };
        let model = ModelId { name: "m".to_owned(), digest: digest.to_owned() };
        Topology { epoch, model, layers: 9, peers: vec![peer] }
    }

    #[test]
    fn an_older_epoch_is_not_obeyed_and_who_is_not_in_a_newer_one_keeps_what_it_has() {
        let mut obeyed = Obeyed::new("a".into(), String::new());
        assert_eq!(obeyed.take(&topology(5, "", "a", 3)), Ok(Assigned::Others));
        assert_eq!(obeyed.take(&topology(5, "", "a", 3)), Ok(Assigned::Same));
        assert_eq!(obeyed.take(&topology(4, "", "a", 2)), Err(NotObeyed::Older { given: 4, obeyed: 5 }));
        assert_eq!(obeyed.take(&topology(6, "", "b", 2)), Ok(Assigned::Nothing));
        assert_eq!((obeyed.epoch(), obeyed.hold().span), (6, Layers::new(0, 3)));
    }

    #[test]
    fn a_topology_of_another_model_changes_nothing_however_new_it_is() {
        let other = |given, theirs: &str| {
            let (theirs, own) = (theirs.to_owned(), "own".to_owned());
            Err(NotObeyed::OtherModel { given, theirs, own })
        };
        let mut told = Obeyed::new("a".into(), "own".to_owned());
        assert_eq!(told.take(&topology(7, "before", "a", 3)), other(7, "before"));
        assert_eq!((told.epoch(), told.hold()), (0, &Hold::default()));
        assert_eq!(
            told.take(&topology(2, "own", "a", 3)),
            Ok(Assigned::Others),
            "those of others count for nothing"
        );
        // Who is told none is of that of the first topology that it is in.
        let mut untold = Obeyed::new("a".into(), String::new());
        assert_eq!(untold.take(&topology(1, "before", "b", 3)), Ok(Assigned::Nothing));
        assert_eq!(untold.take(&topology(2, "own", "a", 3)), Ok(Assigned::Others));
        assert_eq!(untold.model_digest(), "own");
        assert_eq!(untold.take(&topology(3, "after", "a", 4)), other(3, "after"));
        assert_eq!((untold.epoch(), untold.hold().span), (2, Layers::new(0, 3)));
    }
}
