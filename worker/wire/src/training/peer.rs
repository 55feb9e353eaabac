//! What a peer reports.

use dunlin_protocol::training::{FetchFailure, PeerReport, SaveFailure};

use super::check::{MessageError, TENSORS_MAX, list, name, need, text};
use super::held::{contribution_from_wire, contribution_to_wire, state_from_wire, state_to_wire};
use crate::proto::training as wire;
use wire::fetch_failed::Failure;
use wire::peer_report::What;

pub(super) fn to_wire(report: PeerReport) -> wire::PeerReport {
    let what = match report {
        PeerReport::Claim { step, microbatch, attempt } => {
            What::Claim(wire::Claim { step, microbatch, attempt })
        }
        PeerReport::Released { step, microbatch } => What::Released(wire::Released { step, microbatch }),
        PeerReport::Done { step, contribution, took_us } => {
            let contribution = Some(contribution_to_wire(contribution));
            What::Done(wire::Done { step, contribution, took_us })
        }
        PeerReport::Corrupt { what } => What::Corrupt(wire::Corrupt { what }),
        PeerReport::Averaged { step, shard, round, squares } => {
            What::Averaged(wire::Averaged { step, shard, round, squares })
        }
        PeerReport::AverageFailed { step, shard, round, why, mate } => {
            let mate = mate.map(|mate| mate.0);
            What::AverageFailed(wire::AverageFailed { step, shard, round, why, mate })
        }
        PeerReport::Applied { step, scale, state } => {
            What::Applied(wire::Applied { step, scale: Some(scale), state: Some(state_to_wire(state)) })
        }
        PeerReport::Ready { stage, step, state } => {
            What::Ready(wire::Ready { stage, step, state: Some(state_to_wire(state)) })
        }
        PeerReport::FetchFailed { stage, failure, why } => {
            let failure = Some(match failure {
                FetchFailure::Passing => Failure::Passing(wire::Passing {}),
                FetchFailure::Damaged(step) => Failure::Damaged(step),
            });
            What::FetchFailed(wire::FetchFailed { stage, failure, why })
        }
        PeerReport::Wrong { mate, what } => What::Wrong(wire::Wrong { mate: mate.0, what }),
        PeerReport::Taken { step, from } => What::Taken(wire::Taken { step, from: from.0 }),
        PeerReport::TakeFailed { step, from } => What::TakeFailed(wire::Taken { step, from: from.0 }),
        PeerReport::Leaving { within_ms } => What::Leaving(wire::Leaving { within_ms }),
        PeerReport::Saved { step, record } => What::Saved(wire::Saved { step, record }),
        PeerReport::SaveFailed { step, failure, why } => {
            let failure = match failure {
                SaveFailure::Destination => wire::SaveFailure::Destination,
                SaveFailure::OtherStep => wire::SaveFailure::OtherStep,
            };
            What::SaveFailed(wire::SaveFailed { step, failure: failure.into(), why })
        }
    };
    wire::PeerReport { what: Some(what) }
}

pub(super) fn from_wire(report: wire::PeerReport) -> Result<PeerReport, MessageError> {
    Ok(match need(report.what, "peer_report.what")? {
        What::Claim(wire::Claim { step, microbatch, attempt }) => {
            PeerReport::Claim { step, microbatch, attempt }
        }
        What::Released(wire::Released { step, microbatch }) => PeerReport::Released { step, microbatch },
        What::Done(done) => PeerReport::Done {
            step: done.step,
            contribution: contribution_from_wire(need(done.contribution, "done.contribution")?),
            took_us: done.took_us,
        },
        What::Corrupt(corrupt) => PeerReport::Corrupt { what: text(corrupt.what, "corrupt.what")? },
        What::Averaged(averaged) => PeerReport::Averaged {
            step: averaged.step,
            shard: averaged.shard,
            round: averaged.round,
            squares: list(averaged.squares, TENSORS_MAX, "averaged.squares")?,
        },
        What::AverageFailed(failed) => PeerReport::AverageFailed {
            step: failed.step,
            shard: failed.shard,
            round: failed.round,
            why: text(failed.why, "average_failed.why")?,
            mate: failed.mate.map(|mate| name(mate, "average_failed.mate")).transpose()?,
        },
        What::Applied(applied) => PeerReport::Applied {
            step: applied.step,
            scale: need(applied.scale, "applied.scale")?,
            state: state_from_wire(applied.state, "applied.state")?,
        },
        What::Ready(ready) => PeerReport::Ready {
            stage: ready.stage,
            step: ready.step,
            state: state_from_wire(ready.state, "ready.state")?,
        },
        What::FetchFailed(failed) => PeerReport::FetchFailed {
            stage: failed.stage,
            failure: fetch_failure(failed.failure)?,
            why: text(failed.why, "fetch_failed.why")?,
        },
        What::Wrong(wrong) => {
            PeerReport::Wrong { mate: name(wrong.mate, "wrong.mate")?, what: text(wrong.what, "wrong.what")? }
        }
        What::Taken(taken) => PeerReport::Taken { step: taken.step, from: name(taken.from, "taken.from")? },
        What::TakeFailed(taken) => {
            PeerReport::TakeFailed { step: taken.step, from: name(taken.from, "take_failed.from")? }
        }
        What::Leaving(wire::Leaving { within_ms }) => PeerReport::Leaving { within_ms },
        // The message as a whole bounds it.
        What::Saved(wire::Saved { step, record }) => PeerReport::Saved { step, record },
        What::SaveFailed(failed) => PeerReport::SaveFailed {
            step: failed.step,
            failure: save_failure(failed.failure())?,
            why: text(failed.why, "save_failed.why")?,
        },
    })
}

fn fetch_failure(failure: Option<Failure>) -> Result<FetchFailure, MessageError> {
    Ok(match need(failure, "fetch_failed.failure")? {
        Failure::Passing(wire::Passing {}) => FetchFailure::Passing,
        Failure::Damaged(step) => FetchFailure::Damaged(step),
    })
}

/// One that is not known here comes as none.
const fn save_failure(failure: wire::SaveFailure) -> Result<SaveFailure, MessageError> {
    match failure {
        wire::SaveFailure::Unspecified => Err(MessageError::Missing("save_failed.failure")),
        wire::SaveFailure::Destination => Ok(SaveFailure::Destination),
        wire::SaveFailure::OtherStep => Ok(SaveFailure::OtherStep),
    }
}
