//! Who says hello, and what it holds.

use std::collections::BTreeMap;

use dunlin_protocol::training::{Contribution, Held, HeldSums, Hello, ShardId, StateDigest, TrainingRole};
use dunlin_swarm::NumericsClass;
use dunlin_swarm::limits::MICROBATCHES_MAX;

use super::check::{MessageError, OPEN_STEPS_MAX, STAGES_MAX, TENSORS_MAX, digest, list, need, short};
use super::mates::{mate_from_wire, mate_to_wire};
use crate::proto::training as wire;

pub(super) fn hello_to_wire(Hello { me, arithmetic, role }: Hello) -> wire::Hello {
    let role = match role {
        TrainingRole::Peer { held } => {
            wire::hello::Role::Peer(wire::PeerRole { held: held.map(held_to_wire) })
        }
        TrainingRole::Trainer { data } => wire::hello::Role::Trainer(wire::TrainerRole { data }),
    };
    let arithmetic = NumericsClass::number_of(arithmetic);
    wire::Hello { me: Some(mate_to_wire(me)), arithmetic, role: Some(role) }
}

pub(super) fn hello_from_wire(hello: wire::Hello) -> Result<Hello, MessageError> {
    Ok(Hello {
        me: mate_from_wire(need(hello.me, "hello.me")?)?,
        arithmetic: NumericsClass::from_number(hello.arithmetic),
        role: match need(hello.role, "hello.role")? {
            wire::hello::Role::Peer(peer) => {
                TrainingRole::Peer { held: peer.held.map(held_from_wire).transpose()? }
            }
            wire::hello::Role::Trainer(trainer) => {
                TrainingRole::Trainer { data: short(trainer.data, "hello.trainer.data")? }
            }
        },
    })
}

fn held_to_wire(held: Held) -> wire::Held {
    let Held { stage, step, sums, averaged, scale, state, copied, attempt } = held;
    let sums = sums
        .into_iter()
        .map(|HeldSums { done, adding }| wire::HeldSums { done: contributions_to_wire(done), adding });
    let averaged = averaged.into_iter().map(|(shard, squares)| wire::HeldAverage { shard, squares });
    wire::Held {
        stage,
        step,
        sums: sums.collect(),
        averaged: averaged.collect(),
        scale,
        state: Some(state_to_wire(state)),
        copied,
        attempt,
    }
}

fn held_from_wire(held: wire::Held) -> Result<Held, MessageError> {
    let sums = |sums: wire::HeldSums| -> Result<HeldSums, MessageError> {
        Ok(HeldSums {
            done: contributions_from_wire(sums.done, "held.sums.done")?,
            adding: list(sums.adding, MICROBATCHES_MAX, "held.sums.adding")?,
        })
    };
    Ok(Held {
        stage: held.stage,
        step: held.step,
        sums: list(held.sums, OPEN_STEPS_MAX, "held.sums")?
            .into_iter()
            .map(sums)
            .collect::<Result<_, _>>()?,
        averaged: averaged_from_wire(held.averaged)?,
        scale: held.scale,
        state: state_from_wire(held.state, "held.state")?,
        copied: held.copied,
        attempt: held.attempt,
    })
}

fn averaged_from_wire(averages: Vec<wire::HeldAverage>) -> Result<BTreeMap<ShardId, Vec<f64>>, MessageError> {
    let mut averaged = BTreeMap::new();
    for wire::HeldAverage { shard, squares } in list(averages, STAGES_MAX, "held.averaged")? {
        let squares = list(squares, TENSORS_MAX, "held.averaged.squares")?;
        if averaged.insert(shard, squares).is_some() {
            return Err(MessageError::Twice { field: "held.averaged", entry: format!("shard {shard}") });
        }
    }
    Ok(averaged)
}

pub(super) fn state_to_wire(StateDigest { fingerprint, root }: StateDigest) -> wire::StateDigest {
    wire::StateDigest { fingerprint, root }
}

pub(super) fn state_from_wire(
    state: Option<wire::StateDigest>,
    field: &'static str,
) -> Result<StateDigest, MessageError> {
    let wire::StateDigest { fingerprint, root } = need(state, field)?;
    Ok(StateDigest { fingerprint, root: root.map(|root| digest(root, "state.root")).transpose()? })
}

pub(super) fn contribution_to_wire(Contribution { microbatch, loss }: Contribution) -> wire::Contribution {
    wire::Contribution { microbatch, loss }
}

pub(super) const fn contribution_from_wire(contribution: wire::Contribution) -> Contribution {
    Contribution { microbatch: contribution.microbatch, loss: contribution.loss }
}

pub(super) fn contributions_to_wire(contributions: Vec<Contribution>) -> Vec<wire::Contribution> {
    contributions.into_iter().map(contribution_to_wire).collect()
}

pub(super) fn contributions_from_wire(
    contributions: Vec<wire::Contribution>,
    field: &'static str,
) -> Result<Vec<Contribution>, MessageError> {
    let contributions = list(contributions, MICROBATCHES_MAX, field)?;
    Ok(contributions.into_iter().map(contribution_from_wire).collect())
}
