//! What a trainer reports, and what it is told.

use dunlin_protocol::training::{ToTrainer, TrainerReport};

use super::check::{MessageError, STAGES_MAX, list, name, need, text};
use super::mates::{list_from_wire, list_to_wire, names_from_wire, names_to_wire};
use crate::proto::training as wire;
use wire::{to_trainer, trainer_report};

pub(super) fn report_to_wire(report: TrainerReport) -> wire::TrainerReport {
    use trainer_report::What;
    let what = match report {
        TrainerReport::Finished { step, microbatch, attempt, loss } => {
            What::Finished(wire::Finished { step, microbatch, attempt, loss })
        }
        TrainerReport::Contradicted { step, microbatch, attempt, peer, by, what } => {
            let (peer, by) = (peer.0, by.0);
            What::Contradicted(wire::Contradicted { step, microbatch, attempt, peer, by, what })
        }
        TrainerReport::Failed { step, microbatch, attempt, peers, what } => {
            let peers = names_to_wire(peers);
            What::Failed(wire::Failed { step, microbatch, attempt, peers, what })
        }
    };
    wire::TrainerReport { what: Some(what) }
}

pub(super) fn report_from_wire(report: wire::TrainerReport) -> Result<TrainerReport, MessageError> {
    use trainer_report::What;
    Ok(match need(report.what, "trainer_report.what")? {
        What::Finished(wire::Finished { step, microbatch, attempt, loss }) => {
            TrainerReport::Finished { step, microbatch, attempt, loss }
        }
        What::Contradicted(contradicted) => TrainerReport::Contradicted {
            step: contradicted.step,
            microbatch: contradicted.microbatch,
            attempt: contradicted.attempt,
            peer: name(contradicted.peer, "contradicted.peer")?,
            by: name(contradicted.by, "contradicted.by")?,
            what: text(contradicted.what, "contradicted.what")?,
        },
        What::Failed(failed) => TrainerReport::Failed {
            step: failed.step,
            microbatch: failed.microbatch,
            attempt: failed.attempt,
            peers: names_from_wire(failed.peers, "failed.peers")?,
            what: text(failed.what, "failed.what")?,
        },
    })
}

pub(super) fn order_to_wire(order: ToTrainer) -> wire::ToTrainer {
    use to_trainer::What;
    let what = match order {
        ToTrainer::Roster { stages, closing } => What::Roster(wire::Roster {
            stages: stages.into_iter().map(|peers| wire::Stage { peers: list_to_wire(peers) }).collect(),
            closing: names_to_wire(closing),
        }),
        ToTrainer::Work { step, microbatch, validation, attempt } => {
            What::Work(wire::Work { step, microbatch, validation, attempt })
        }
        ToTrainer::Committed { step } => What::Committed(wire::Committed { step }),
        ToTrainer::Refused { why } => What::Refused(wire::Refused { why }),
        ToTrainer::Anew => What::Anew(wire::Anew {}),
        ToTrainer::Retire => What::Retire(wire::Retire {}),
    };
    wire::ToTrainer { what: Some(what) }
}

pub(super) fn order_from_wire(order: wire::ToTrainer) -> Result<ToTrainer, MessageError> {
    use to_trainer::What;
    let stage = |stage: wire::Stage| list_from_wire(stage.peers, "roster.stages.peers");
    Ok(match need(order.what, "to_trainer.what")? {
        What::Roster(roster) => ToTrainer::Roster {
            stages: list(roster.stages, STAGES_MAX, "roster.stages")?
                .into_iter()
                .map(stage)
                .collect::<Result<_, _>>()?,
            closing: names_from_wire(roster.closing, "roster.closing")?,
        },
        What::Work(wire::Work { step, microbatch, validation, attempt }) => {
            ToTrainer::Work { step, microbatch, validation, attempt }
        }
        What::Committed(wire::Committed { step }) => ToTrainer::Committed { step },
        What::Refused(refused) => ToTrainer::Refused { why: text(refused.why, "refused.why")? },
        What::Anew(wire::Anew {}) => ToTrainer::Anew,
        What::Retire(wire::Retire {}) => ToTrainer::Retire,
    })
}
