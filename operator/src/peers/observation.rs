//! What a conductor says about its run, within bounds, as it is not trusted to be sane.

use dunlin_swarm::limits::STAGES_MAX;
use dunlin_wire::proto;

/// Longest text that is taken, in characters.
const TEXT_MAX: usize = 1024;
/// Why a run is degraded whose checkpoints cannot be written.
pub const CHECKPOINTS_FAILING: &str = "CheckpointsFailing";

/// What a run is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunPhase {
    /// Waits for peers and trainers, or reads a checkpoint.
    #[default]
    Starting,
    /// Trains.
    Training,
    /// Writes its last checkpoint.
    Suspending,
    /// Trains no more; all that was trained is in a checkpoint.
    Suspended,
    /// All steps are done, and in a checkpoint.
    Succeeded,
    /// Cannot go on; see the message.
    Failed,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// What it is doing.
    pub phase: RunPhase,
    /// In words: what it waits for, or what failed and what to do.
    pub message: String,
    /// Updates done.
    pub step: u64,
    /// Updates asked for.
    pub steps: u64,
    /// Mean loss per token of the last step.
    pub loss: Option<f64>,
    /// The same of held-out data, when last measured.
    pub validation_loss: Option<f64>,
    /// Tokens trained on per second.
    pub tokens_per_second: Option<f64>,
    /// Stages in order.
    pub stages: Vec<ObservedStage>,
    /// Microbatches that were computed again.
    pub redone: u64,
    /// Peers lost without notice.
    pub lost: u64,
    /// Peers that went to another stage.
    pub moves: u64,
    /// The newest complete checkpoint.
    pub last_checkpoint: Option<ObservedCheckpoint>,
    /// What is not as it should be, though it trains.
    pub degraded: Option<Degraded>,
    /// It knows which checkpoints there are. One that has just started may not.
    pub checkpoints_known: bool,
}

/// What is not as it should be, though a run trains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Degraded {
    /// CamelCase.
    pub reason: String,
    /// What, and what is done about it.
    pub message: String,
}

/// One stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedStage {
    /// Its number, from 0.
    pub stage: u32,
    /// First and last of its layers: `0-7`.
    pub layers: String,
    /// Peers that are current.
    pub peers: u32,
    /// Sequences per second.
    pub samples_per_second: f64,
}

/// A checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedCheckpoint {
    /// Updates in it.
    pub step: u64,
    /// Its folder, below the destination.
    pub path: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
}

impl Observation {
    /// What a conductor said, as far as it can be.
    ///
    /// # Errors
    /// When it does something that is not known here, for the log.
    pub fn from_wire(said: proto::Observation) -> Result<Self, String> {
        let phase = match proto::RunPhase::try_from(said.phase) {
            Ok(proto::RunPhase::Starting) => RunPhase::Starting,
            Ok(proto::RunPhase::Training) => RunPhase::Training,
            Ok(proto::RunPhase::Suspending) => RunPhase::Suspending,
            Ok(proto::RunPhase::Suspended) => RunPhase::Suspended,
            Ok(proto::RunPhase::Succeeded) => RunPhase::Succeeded,
            Ok(proto::RunPhase::Failed) => RunPhase::Failed,
            Err(_) => {
                return Err(format!("the conductor is in phase {}, which is not known here", said.phase));
            }
        };
        let stage = |s: proto::StageProgress| ObservedStage {
            stage: s.stage,
            layers: clipped(s.layers, 32),
            peers: s.peers,
            samples_per_second: rounded(s.samples_per_second),
        };
        let checkpoint = |c: proto::SavedCheckpoint| ObservedCheckpoint {
            step: c.step,
            path: clipped(c.path, TEXT_MAX),
            sha256: clipped(c.sha256, 64),
        };
        // A condition's reason has a form.
        let degraded = said.degraded.filter(|d| is_reason(&d.reason));
        let degraded = degraded.map(|d| Degraded { reason: d.reason, message: clipped(d.message, TEXT_MAX) });
        Ok(Self {
            phase,
            message: clipped(said.message, TEXT_MAX),
            step: said.step,
            steps: said.steps,
            loss: said.loss.map(rounded),
            validation_loss: said.validation_loss.map(rounded),
            tokens_per_second: said.tokens_per_second.map(rounded),
            stages: said.stages.into_iter().take(STAGES_MAX as usize).map(stage).collect(),
            redone: said.redone,
            lost: said.lost,
            moves: said.moves,
            last_checkpoint: said.last_checkpoint.map(checkpoint),
            degraded,
            checkpoints_known: said.checkpoints_known,
        })
    }

    /// Without what changes all the time: what is left is news.
    #[must_use]
    pub fn without_progress(&self) -> Self {
        let stages = self.stages.iter().map(|s| ObservedStage { samples_per_second: 0.0, ..s.clone() });
        Self {
            step: 0,
            loss: None,
            validation_loss: None,
            tokens_per_second: None,
            redone: 0,
            stages: stages.collect(),
            ..self.clone()
        }
    }
}

fn is_reason(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn clipped(mut text: String, max: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(max) {
        text.truncate(end);
    }
    text
}

/// Six places: what is written to the status is what is read back.
fn rounded(value: f64) -> f64 {
    if value.is_finite() { (value * 1e6).round() / 1e6 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn said() -> proto::Observation {
        let stage =
            proto::StageProgress { stage: 0, layers: "0-7".into(), peers: 2, samples_per_second: 3.5 };
        proto::Observation {
            phase: proto::RunPhase::Training.into(),
            message: "m".repeat(5000),
            step: 120,
            steps: 500,
            loss: Some(2.123_456_789),
            validation_loss: None,
            tokens_per_second: Some(f64::NAN),
            stages: vec![stage; 100],
            redone: 3,
            lost: 1,
            moves: 2,
            last_checkpoint: Some(proto::SavedCheckpoint {
                step: 100,
                path: "/checkpoints/bible/step-100".into(),
                sha256: "a".repeat(999),
            }),
            degraded: Some(proto::Degraded {
                reason: "CheckpointsFailing".into(),
                message: "no space left".into(),
            }),
            checkpoints_known: true,
        }
    }

    #[test]
    fn what_a_conductor_says_is_read_and_bounded() {
        let found = Observation::from_wire(said()).unwrap();
        assert_eq!((found.phase, found.step, found.steps), (RunPhase::Training, 120, 500));
        let losses = (found.loss, found.validation_loss, found.tokens_per_second);
        assert_eq!(losses, (Some(2.123_457), None, Some(0.0)));
        assert_eq!((found.message.len(), found.stages.len()), (1024, 64));
        assert_eq!((found.redone, found.lost, found.moves, found.checkpoints_known), (3, 1, 2, true));
        assert_eq!(
            found.stages[3],
            ObservedStage { stage: 0, layers: "0-7".into(), peers: 2, samples_per_second: 3.5 }
        );
        let checkpoint = found.last_checkpoint.clone().unwrap();
        assert_eq!((checkpoint.step, checkpoint.sha256.len()), (100, 64));
        let degraded =
            Degraded { reason: "CheckpointsFailing".to_owned(), message: "no space left".to_owned() };
        assert_eq!(found.degraded, Some(degraded));
        let odd = proto::Degraded { reason: "no reason at all".into(), message: "m".into() };
        let odd = proto::Observation { degraded: Some(odd), ..said() };
        assert_eq!(Observation::from_wire(odd).unwrap().degraded, None);
        let later = Observation { step: 121, loss: Some(2.0), ..found.clone() };
        assert_eq!(later.without_progress(), found.without_progress());
        let other = Observation { phase: RunPhase::Suspended, ..later };
        assert_ne!(other.without_progress(), found.without_progress());
    }

    #[test]
    fn a_later_conductor_may_say_more_but_do_nothing_that_is_not_known() {
        let mut bytes = said().encode_to_vec();
        bytes.extend([0xfa, 0x01, 3, b'n', b'e', b'w']);
        let read = proto::Observation::decode(&bytes[..]).unwrap();
        assert_eq!(Observation::from_wire(read), Observation::from_wire(said()));
        assert_eq!(Observation::from_wire(proto::Observation::default()), Ok(Observation::default()));
        let dancing = proto::Observation { phase: 99, ..said() };
        assert!(Observation::from_wire(dancing).unwrap_err().contains("phase 99"));
    }
}
