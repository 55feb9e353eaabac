//! What a peer is told.

use dunlin_protocol::training::{Fetch, StageStart, ToPeer};

use super::check::{MessageError, need, text};
use super::held::{contributions_from_wire, contributions_to_wire};
use super::mates::{
    list_from_wire, list_to_wire, mate_from_wire, mate_to_wire, mates_from_wire, mates_to_wire,
};
use crate::proto::training as wire;
use wire::to_peer::What;

pub(super) fn to_wire(order: ToPeer) -> wire::ToPeer {
    let what = match order {
        ToPeer::Grant { step, microbatch, granted } => What::Grant(wire::Grant { step, microbatch, granted }),
        ToPeer::Load(StageStart { stage, step, checkpoint }) => {
            What::Load(wire::Load { stage, step, checkpoint })
        }
        ToPeer::Fetch(Fetch { stage, step, mates, whole }) => {
            What::Fetch(wire::Fetch { stage, step, mates: list_to_wire(mates), whole })
        }
        ToPeer::Average { step, shard, round, group } => {
            What::Average(wire::Average { step, shard, round, group: list_to_wire(group) })
        }
        ToPeer::Apply { step, scale, prove } => What::Apply(wire::Apply { step, scale: Some(scale), prove }),
        ToPeer::Take { step, from, contributions } => What::Take(wire::Take {
            step,
            from: Some(mate_to_wire(from)),
            contributions: contributions_to_wire(contributions),
        }),
        ToPeer::Save { step, check } => What::Save(wire::Save { step, check }),
        ToPeer::Clear { step, attempt } => What::Clear(wire::Clear { step, attempt }),
        ToPeer::Expelled { why } => What::Expelled(wire::Expelled { why }),
        ToPeer::Mates(mates) => What::Mates(mates_to_wire(mates)),
        ToPeer::Retire => What::Retire(wire::Retire {}),
    };
    wire::ToPeer { what: Some(what) }
}

pub(super) fn from_wire(order: wire::ToPeer) -> Result<ToPeer, MessageError> {
    Ok(match need(order.what, "to_peer.what")? {
        What::Grant(wire::Grant { step, microbatch, granted }) => ToPeer::Grant { step, microbatch, granted },
        What::Load(wire::Load { stage, step, checkpoint }) => {
            ToPeer::Load(StageStart { stage, step, checkpoint })
        }
        What::Fetch(fetch) => ToPeer::Fetch(Fetch {
            stage: fetch.stage,
            step: fetch.step,
            mates: list_from_wire(fetch.mates, "fetch.mates")?,
            whole: fetch.whole,
        }),
        What::Average(average) => ToPeer::Average {
            step: average.step,
            shard: average.shard,
            round: average.round,
            group: list_from_wire(average.group, "average.group")?,
        },
        What::Apply(wire::Apply { step, scale, prove }) => {
            ToPeer::Apply { step, scale: need(scale, "apply.scale")?, prove }
        }
        What::Take(take) => ToPeer::Take {
            step: take.step,
            from: mate_from_wire(need(take.from, "take.from")?)?,
            contributions: contributions_from_wire(take.contributions, "take.contributions")?,
        },
        What::Save(wire::Save { step, check }) => ToPeer::Save { step, check },
        What::Clear(wire::Clear { step, attempt }) => ToPeer::Clear { step, attempt },
        What::Expelled(expelled) => ToPeer::Expelled { why: text(expelled.why, "expelled.why")? },
        What::Mates(mates) => ToPeer::Mates(mates_from_wire(mates)?),
        What::Retire(wire::Retire {}) => ToPeer::Retire,
    })
}
