//! The way from the stage's loop to its engine, which never makes the loop wait.
//!
//! The engine gives its results to the same loop and does wait when that has no time. If the loop waited for the engine as well, the two
//! could wait for each other for ever. So a command that the engine's queue has no room for stays here, in order, and the loop takes nothing
//! that leads to more commands until it has gone.

use std::collections::VecDeque;

use anyhow::anyhow;
use dunlin_engine::executor::NotTaken;
use dunlin_engine::{Command, Engine};

/// Commands on their way to an engine.
#[derive(Default)]
pub struct Commands {
    engine: Option<Engine>,
    /// At most what one frame, one result and one tick lead to.
    backlog: VecDeque<Command>,
}

impl Commands {
    /// The engine, once it runs.
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// It runs.
    pub fn set_engine(&mut self, engine: Engine) {
        self.engine = Some(engine);
    }

    /// Gives a command, which leaves with [`Commands::flush`]. The node computes only with layers that an engine holds, so there is one.
    pub fn give(&mut self, command: Command) {
        self.backlog.push_back(command);
    }

    /// Gives the engine what it has room for. Has everything gone?
    ///
    /// # Errors
    /// When the engine's thread has ended.
    pub fn flush(&mut self) -> anyhow::Result<bool> {
        let Some(engine) = &self.engine else { return Ok(self.backlog.is_empty()) };
        while let Some(command) = self.backlog.pop_front() {
            match engine.try_send(command) {
                Ok(()) => {}
                Err(NotTaken::Full(command)) => {
                    self.backlog.push_front(command);
                    return Ok(false);
                }
                Err(NotTaken::Ended) => return Err(self.ended()),
            }
        }
        Ok(true)
    }

    /// Why the engine's thread has ended.
    pub fn ended(&self) -> anyhow::Error {
        match self.engine.as_ref().and_then(|engine| engine.status().failure) {
            Some(failure) => anyhow!("the device has failed: {failure}"),
            None => anyhow!("the engine has ended: see the log before this"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use dunlin_engine::{Command, CpuSpan, Engine, EngineConfig};
    use dunlin_model::ModelFile;
    use dunlin_model::random_model::{self, RandomModelSpec};
    use dunlin_protocol::SessionId;
    use dunlin_protocol::stage::{Computed, Input, Line, StageJob, Urgency};
    use dunlin_swarm::Layers;

    use super::Commands;

    /// More than an engine's queue holds.
    const MANY: u64 = 10_000;
    const LIMIT: Duration = Duration::from_secs(60);

    fn engine(done: impl Fn(Computed) + Send + 'static) -> Engine {
        let folder = tempfile::tempdir().unwrap();
        let spec =
            RandomModelSpec { layers: 1, hidden: 32, heads: 2, kv_heads: 1, ffn: 32, vocab: 300, seed: 1 };
        random_model::write(folder.path(), &spec).unwrap();
        let model = ModelFile::open_path(folder.path()).unwrap().config().clone();
        let span = Box::new(CpuSpan::new(&model, 1, 16));
        let config = EngineConfig { model, span, positions_max: 16, kv_bytes: 1 << 20 };
        Engine::start(config, Box::new(done)).unwrap()
    }

    /// Its result comes at once: the engine has no layers.
    fn job(session: u64) -> StageJob {
        StageJob {
            session: SessionId(session),
            attempt: 1,
            layers: Layers::new(0, 1),
            adapter: None,
            line: Line { urgency: Urgency::Step, born_ms: 0 },
            start: 0,
            count: 1,
            input: Input::Tokens(vec![1]),
            last: false,
            sample: None,
        }
    }

    #[test]
    fn an_engine_that_waits_for_its_results_to_be_taken_makes_nobody_wait() {
        let (release, released) = channel::<()>();
        let (results_in, results) = channel();
        let engine = engine(move |done| {
            results_in.send(done.session.0).unwrap();
            released.recv().unwrap();
        });
        let mut commands = Commands::default();
        commands.set_engine(engine);
        commands.give(Command::Job(job(0)));
        assert!(commands.flush().unwrap());
        assert_eq!(results.recv_timeout(LIMIT), Ok(0));
        // It stands still with this result now.
        (1..MANY).for_each(|session| commands.give(Command::Job(job(session))));
        assert!(!commands.flush().unwrap(), "there is not room for all of them");
        (0..MANY).for_each(|_| release.send(()).unwrap());
        let mut seen = vec![0];
        while seen.len() < MANY as usize {
            seen.push(results.recv_timeout(LIMIT).unwrap());
            commands.flush().unwrap();
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..MANY), "none is lost, none comes twice");
        assert!(commands.flush().unwrap());
    }

    #[test]
    fn the_end_of_an_engine_shows_at_both_ends() {
        let (results_in, results) = channel();
        let engine = engine(move |done| {
            results_in.send(done.session).unwrap();
            panic!("as a bug would");
        });
        let mut commands = Commands::default();
        commands.set_engine(engine);
        commands.give(Command::Job(job(1)));
        assert!(commands.flush().unwrap());
        assert_eq!(results.recv_timeout(LIMIT).unwrap(), SessionId(1));
        // The way for results goes with the thread, which is how the stage's loop learns of it; and from then on nothing is taken.
        let end = results.recv_timeout(LIMIT);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected));
        commands.give(Command::Job(job(2)));
        let ended = commands.flush().unwrap_err();
        assert!(ended.to_string().contains("the engine has ended"), "{ended}");
    }
}
