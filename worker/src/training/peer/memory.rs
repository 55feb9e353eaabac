//! Memory: is there enough for a stage? What is freed is kept, as the next step takes it again.

use anyhow::ensure;
use dunlin_train::Run;

/// Up to this size it is taken from what was freed, and so much is kept: the largest that can be said.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 30;

/// From now on, this process keeps what it frees. Each step takes the same vectors, and in an average as many pieces, as the one before; to get
/// them from the system, page by page, takes a third of an average's time.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for what in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt(3) takes numbers, and refuses those that it does not know.
        #[allow(unsafe_code, reason = "std knows nothing of the allocator's options")]
        let taken = unsafe { libc::mallopt(what, KEPT_BYTES) };
        if taken == 0 {
            tracing::debug!(what, "the allocator knows no such option");
        }
    }
}

/// Can this peer serve any stage of the run with `bytes` of memory? It may come to each of them; 0 is not known.
///
/// # Errors
/// When it cannot: the system would kill it in the middle of a step, again and again.
pub fn suffices(run: &Run, bytes: u64) -> anyhow::Result<()> {
    let largest = (0..run.config.stages).map(|stage| (run.stage_bytes_min(stage), stage)).max();
    let (needed, stage) = largest.unwrap_or_default();
    let mib = |bytes: u64| bytes >> 20;
    ensure!(
        bytes == 0 || needed <= bytes,
        "stage {stage} needs {} MiB at least, and this peer may use {}: give it more memory (memory.host of the pool), or the run more stages",
        mib(needed),
        mib(bytes)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use dunlin_train::{Run, TrainingConfig};

    use super::suffices;

    #[test]
    fn a_peer_without_room_for_a_stage_is_told_what_to_change() {
        let json = serde_json::json!({
            "model": {"config": {"hiddenSize": 512, "layers": 4, "heads": 8, "ffn": 1408, "contextLength": 32}},
            "data": {"text": {"path": "a"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 1, "stages": 2,
            "optimizer": {"kind": "AdamW", "learningRate": 0.1},
        });
        let config = TrainingConfig::from_json(&json.to_string()).unwrap();
        let dunlin_train::config::InitialModel::Config(shape) = &config.model else { unreachable!() };
        let model = dunlin_train::config::model_config(shape, 256).unwrap();
        let run = Run::new(config, model).unwrap();
        let needed = run.stage_bytes_min(1);
        suffices(&run, 0).unwrap();
        suffices(&run, needed).unwrap();
        let error = suffices(&run, needed - 1).unwrap_err().to_string();
        assert!(error.starts_with("stage 1 needs") && error.contains("memory.host"), "{error}");
    }
}
