//! A peer that gives what its engine has and does nothing else: to measure averages, and for tests.

use dunlin_protocol::training::StageId;
use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::serve::{ServeConfig, ServeEvent, Serving};
use dunlin_wire::train::StageInbound;
use tokio::sync::mpsc;

use super::alarm::Alarm;
use super::average::Averaging;
use super::clock::Clock;
use super::engine::TrainingEngine;
use super::serve::{Pulled, Pulls, Served};

/// What is said to it.
pub(super) enum Order {
    /// An average has begun.
    Open(Averaging),
    /// The sums are about to change.
    #[cfg(test)]
    Close,
}

/// Whom it gives to is known from the start.
pub(super) struct Giving {
    machine: Serving,
    clock: Clock,
    stage: StageId,
    pulls: Pulls,
    served: Served,
}

impl Giving {
    /// Gives what the engine has of a stage to these.
    pub fn new(engine: TrainingEngine, stage: StageId, mates: Mates) -> Self {
        let (pulls, served) = Pulls::new(engine, Alarm::silent());
        let machine = Serving::new(ServeConfig::default());
        let mut giving = Self { machine, clock: Clock::start(), stage, pulls, served };
        giving.handle(ServeEvent::Mates(mates));
        giving
    }

    /// Until nobody can ask any more, or say anything.
    pub async fn run(mut self, mut inbound: mpsc::Receiver<StageInbound>, mut orders: mpsc::Receiver<Order>) {
        loop {
            let (clock, wake_ms) = (self.clock, self.machine.wake_ms());
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Open(averaging)) => {
                        let id = averaging.id();
                        self.pulls.open(averaging);
                        self.handle(ServeEvent::Opened(id));
                    }
                    #[cfg(test)]
                    Some(Order::Close) => {
                        self.handle(ServeEvent::Closed);
                        self.pulls.cancel();
                    }
                    None => return,
                },
                Some(ask) = self.served.recv() => self.handle(ServeEvent::Ended(ask)),
                () = clock.until(wake_ms) => self.handle(ServeEvent::Deadline),
                event = inbound.recv() => match event {
                    Some(StageInbound::Pull(caller, request, pieces)) => {
                        if let Some(pulled) = self.pulls.asked(&caller, request, pieces) {
                            let Pulled { ask, by, stage, wanted } = pulled;
                            let here = Some(self.stage);
                            self.handle(ServeEvent::Asked { ask, by, stage, wanted, here });
                        }
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    fn handle(&mut self, event: ServeEvent) {
        let mut out = Vec::new();
        self.machine.handle(self.clock.now_ms(), event, &mut out);
        for effect in out {
            self.pulls.perform(effect);
        }
    }
}
