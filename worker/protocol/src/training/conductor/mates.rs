//! Which others each peer gives values to: those at its stage, and for a shared embedding those at the other end of the pipeline.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::Conductor;
use super::turn::Turn;
use crate::training::ids::StageId;
use crate::training::mates::Mates;
use crate::training::message::ToPeer;

impl Conductor {
    /// Tells the peers whose mates have changed.
    pub(super) fn tell_mates(&mut self, turn: &mut Turn<'_>) {
        let all: Vec<(PeerName, Mates)> = self
            .peers
            .all()
            .iter()
            .filter_map(|(name, peer)| Some((name.clone(), self.mates_of(name, peer.place.stage()?))))
            .collect();
        for (name, mates) in all {
            if self.peers.set_mates(&name, &mates) {
                turn.tell(&name, ToPeer::Mates(mates));
            }
        }
    }

    fn mates_of(&self, name: &PeerName, stage: StageId) -> Mates {
        let at = |stage: StageId| {
            let placed = self.peers.all().iter().filter(move |(_, peer)| peer.place.stage() == Some(stage));
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
