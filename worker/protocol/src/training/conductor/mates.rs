//! Which others each peer gives values to: those at its stage, and for a shared embedding those at the other end of the pipeline.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::Conductor;
use super::peer_state::Place;
use super::turn::Turn;
use crate::training::ids::StageId;
use crate::training::mates::Mates;
use crate::training::message::ToPeer;

impl Place {
    /// The stage whose values it gets, has or hands over.
    fn stage(&self) -> Option<StageId> {
        match self {
            Self::Fetching { stage }
            | Self::Parked { stage }
            | Self::Member { stage }
            | Self::Clearing { stage }
            | Self::HandingOver { stage, .. } => Some(*stage),
            Self::Idle | Self::Retired => None,
        }
    }
}

impl Conductor {
    /// Tells the peers whose mates have changed.
    pub(super) fn tell_mates(&mut self, turn: &mut Turn<'_>) {
        let all: Vec<(PeerName, Mates)> = self
            .peers
            .iter()
            .filter_map(|(name, peer)| Some((name.clone(), self.mates_of(name, peer.place.stage()?))))
            .collect();
        for (name, mates) in all {
            if let Some(peer) = self.peers.get_mut(&name).filter(|peer| peer.mates != mates) {
                peer.mates.clone_from(&mates);
                turn.tell(&name, ToPeer::Mates(mates));
            }
        }
    }

    fn mates_of(&self, name: &PeerName, stage: StageId) -> Mates {
        let at = |stage: StageId| {
            let placed = self.peers.iter().filter(move |(_, peer)| peer.place.stage() == Some(stage));
            placed.map(|(name, _)| name).filter(|other| *other != name).cloned()
        };
        let shared = self.averages.of_stage(stage).into_iter().find_map(|shard| {
            let mut others =
                self.averages.stages_of(shard).iter().copied().filter(|other| *other != stage).peekable();
            others.peek()?;
            Some((shard, others.flat_map(at).collect::<BTreeSet<_>>()))
        });
        Mates { stage: at(stage).collect(), shared }
    }
}
