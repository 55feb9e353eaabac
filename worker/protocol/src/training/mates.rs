//! Who may have what of a peer: the conductor's roster, as far as it concerns the peer that is asked.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::ids::ShardId;

/// Those that a peer gives values to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mates {
    /// Everybody else that the conductor has placed at its stage: those that serve it, fetch it, or hand it over.
    pub stage: BTreeSet<PeerName>,
    /// The shard that peers of another stage hold, too, and who they are.
    pub shared: Option<(ShardId, BTreeSet<PeerName>)>,
}

/// What a peer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// State, updates or sums of its stage.
    Stage,
    /// Its part in the average of a shard.
    Shard(ShardId),
}

impl Mates {
    /// Whether `who` may have it.
    #[must_use]
    pub fn may_have(&self, who: &PeerName, asked: Asked) -> bool {
        let shares = |(shard, peers): &(ShardId, BTreeSet<PeerName>)| {
            asked == Asked::Shard(*shard) && peers.contains(who)
        };
        self.stage.contains(who) || self.shared.as_ref().is_some_and(shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mates_have_all_and_the_other_end_of_an_embedding_has_its_shard() {
        let mates =
            Mates { stage: BTreeSet::from(["b".into()]), shared: Some((4, BTreeSet::from(["z".into()]))) };
        for (who, asked, may) in [
            ("b", Asked::Stage, true),
            ("b", Asked::Shard(0), true),
            ("b", Asked::Shard(4), true),
            ("z", Asked::Stage, false),
            ("z", Asked::Shard(0), false),
            ("z", Asked::Shard(4), true),
            ("x", Asked::Stage, false),
            ("x", Asked::Shard(4), false),
        ] {
            assert_eq!(mates.may_have(&who.into(), asked), may, "{who} {asked:?}");
        }
    }
}
