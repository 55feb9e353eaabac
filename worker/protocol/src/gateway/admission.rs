//! Who comes in, and when.

use std::mem::take;

use super::core::GatewayCore;
use super::session::Session;
use super::shell::{Failure, GatewayEffect, NotReady, Rejected, Submission};

impl GatewayCore {
    /// Can a new session be routed now?
    ///
    /// # Errors
    /// That the swarm has another model, or which layers nobody holds.
    pub fn ready(&mut self) -> Result<(), NotReady> {
        match self.model.other() {
            Some(other) => Err(other.clone().into()),
            None => Ok(self.routes.fresh().map(drop)?),
        }
    }

    /// Takes a sequence to be continued.
    ///
    /// # Errors
    /// When there is no room, no holder for some layers, or no sense in it.
    pub fn submit(
        &mut self,
        submission: Submission,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) -> Result<(), Rejected> {
        let retry_after_s = self.config.retry_after_s;
        if submission.tokens.is_empty() || submission.tokens.len() >= submission.max_len as usize {
            return Err(Rejected::Invalid { message: "no prompt, or no room for an answer".to_owned() });
        }
        if self.sessions.contains_key(&submission.session) {
            return Err(Rejected::Invalid { message: "the session exists".to_owned() });
        }
        if let Err(not_ready) = self.ready() {
            return Err(Rejected::NoCapacity { retry_after_s, message: not_ready.to_string() });
        }
        let id = submission.session;
        self.sessions.insert(id, Session::new(submission, now_ms));
        self.queue.push_back(id);
        self.start_queued(now_ms, out);
        // Whatever it would wait for: its turn, or pages.
        if self.queue.len() > self.config.queue_max {
            self.queue.pop_back();
            self.sessions.remove(&id);
            return Err(Rejected::Busy { retry_after_s });
        }
        Ok(())
    }

    /// Rule: first come, first let in; nobody is let in before there are pages for it. Where there is no way any more because the swarm has another
    /// model, nobody waits for one.
    pub(super) fn start_queued(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.held_up = None;
        while self.counts().0 < self.config.running_max {
            let Some(&id) = self.queue.front() else { return };
            let way = match self.routes.fresh() {
                Ok(way) => way,
                Err(no_way) => {
                    self.held_up = Some(no_way.to_string());
                    return self.end_queued(now_ms, out);
                }
            };
            if let Some(lack) = self.lacks_pages(id, &way.hops, now_ms) {
                self.held_up = Some(lack);
                return;
            }
            self.queue.pop_front();
            self.begin(id, way, now_ms, out);
        }
    }

    /// Those that have not begun end if the swarm has another model: gateways of that one take them.
    fn end_queued(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let Some(other) = self.model.other().cloned() else { return };
        for id in take(&mut self.queue) {
            self.fail(id, Failure::OtherModel(other.clone()), now_ms, out);
        }
    }
}
