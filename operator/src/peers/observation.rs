//! What a conductor says about its run: JSON, within bounds, as it is not trusted to be sane.

use serde::Deserialize;

/// Longest text that is taken, in characters.
const TEXT_MAX: usize = 1024;
/// Stages that a run can have.
const STAGES_MAX: usize = 64;
/// Why a run is degraded whose checkpoints cannot be written.
pub const CHECKPOINTS_FAILING: &str = "CheckpointsFailing";

/// What a run is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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
    pub stages: Vec<Stage>,
    /// Microbatches that were computed again.
    pub redone: u64,
    /// Peers lost without notice.
    pub lost: u64,
    /// Peers that went to another stage.
    pub moves: u64,
    /// The newest complete checkpoint.
    pub last_checkpoint: Option<Checkpoint>,
    /// What is not as it should be, though it trains.
    pub degraded: Option<Degraded>,
    /// It knows which checkpoints there are. One that has just started may not.
    pub checkpoints_known: bool,
}

/// What is not as it should be, though a run trains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Degraded {
    /// CamelCase.
    pub reason: String,
    /// What, and what is done about it.
    pub message: String,
}

/// One stage.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stage {
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    /// Updates in it.
    pub step: u64,
    /// Its folder, below the destination.
    pub path: String,
    /// SHA-256 of its manifest.
    pub sha256: String,
}

impl Observation {
    /// Reads what a conductor said.
    ///
    /// # Errors
    /// What is wrong with it, for the log.
    pub fn parse(json: &str) -> Result<Self, String> {
        let mut found: Self =
            serde_json::from_str(json).map_err(|e| format!("the conductor's observation: {e}"))?;
        clip(&mut found.message, TEXT_MAX);
        found.loss = found.loss.map(rounded);
        found.validation_loss = found.validation_loss.map(rounded);
        found.tokens_per_second = found.tokens_per_second.map(rounded);
        found.stages.truncate(STAGES_MAX);
        for stage in &mut found.stages {
            clip(&mut stage.layers, 32);
            stage.samples_per_second = rounded(stage.samples_per_second);
        }
        // A condition's reason has a form.
        found.degraded = found.degraded.filter(|d| is_reason(&d.reason));
        if let Some(degraded) = &mut found.degraded {
            clip(&mut degraded.message, TEXT_MAX);
        }
        if let Some(checkpoint) = &mut found.last_checkpoint {
            clip(&mut checkpoint.path, TEXT_MAX);
            clip(&mut checkpoint.sha256, 64);
        }
        Ok(found)
    }

    /// Without what changes all the time: what is left is news.
    #[must_use]
    pub fn without_progress(&self) -> Self {
        let stages = self.stages.iter().map(|s| Stage { samples_per_second: 0.0, ..s.clone() });
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

fn clip(text: &mut String, max: usize) {
    if text.chars().count() > max {
        *text = text.chars().take(max).collect();
    }
}

/// Six places: what is written to the status is what is read back.
fn rounded(value: f64) -> f64 {
    if value.is_finite() { (value * 1e6).round() / 1e6 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_conductor_says_is_read_and_bounded() {
        let said = json!({
            "phase": "Training", "message": "m".repeat(5000), "step": 120, "steps": 500, "loss": 2.123_456_789, "validationLoss": null,
            "tokensPerSecond": 1234.5,
            "stages": vec![json!({"stage": 0, "layers": "0-7", "peers": 2, "samplesPerSecond": 3.5}); 100],
            "redone": 3, "lost": 1, "moves": 2,
            "degraded": {"reason": "CheckpointsFailing", "message": "no space left"},
            "lastCheckpoint": {"step": 100, "path": "/checkpoints/bible/step-100", "sha256": "abc"},
        });
        let found = Observation::parse(&said.to_string()).unwrap();
        assert_eq!((found.phase, found.step, found.steps), (RunPhase::Training, 120, 500));
        assert_eq!((found.loss, found.validation_loss), (Some(2.123_457), None));
        assert_eq!((found.message.len(), found.stages.len()), (1024, 64));
        assert_eq!(
            found.stages[3],
            Stage { stage: 0, layers: "0-7".into(), peers: 2, samples_per_second: 3.5 }
        );
        assert_eq!(found.last_checkpoint.as_ref().map(|c| c.step), Some(100));
        let degraded =
            Degraded { reason: "CheckpointsFailing".to_owned(), message: "no space left".to_owned() };
        assert_eq!(found.degraded, Some(degraded));
        let odd = json!({"phase": "Training", "degraded": {"reason": "no reason at all", "message": "m"}});
        assert_eq!(Observation::parse(&odd.to_string()).unwrap().degraded, None);
        let later = Observation { step: 121, loss: Some(2.0), ..found.clone() };
        assert_eq!(later.without_progress(), found.without_progress());
        let other = Observation { phase: RunPhase::Suspended, ..later };
        assert_ne!(other.without_progress(), found.without_progress());
    }

    #[test]
    fn a_conductor_that_starts_says_little_and_another_phase_is_refused() {
        assert_eq!(Observation::parse("{\"phase\": \"Starting\"}").unwrap(), Observation::default());
        assert!(Observation::parse("{\"phase\": \"Dancing\"}").unwrap_err().contains("Dancing"));
    }
}
