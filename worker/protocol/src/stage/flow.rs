//! How rows and tokens pass through a stage.
//!
//! Nothing piles up: a hop sends no row that the next one has not said it has room for, computes no more than one window beyond that, and
//! tells the hop before how much room it has itself. The room is each session's own, so that no session waits for another's rows to be
//! taken, and the last hop always has room: rows cannot wait for each other in a circle.

use std::sync::Arc;

use dunlin_swarm::Position;

use super::node::StageNode;
use super::shell::{Computed, Output, Recipient, StageEffect};
use crate::frame::{Attempt, Frame, Hop, RowData, SessionId};

impl StageNode {
    /// Rule: rows of the current attempt that continue what was received are taken; what was had is dropped; a gap is not filled here (the
    /// gateway notices that nothing goes on).
    #[expect(clippy::too_many_arguments, reason = "the fields of a frame")]
    pub(super) fn rows(
        &mut self,
        session: SessionId,
        attempt: Attempt,
        index: u32,
        start: Position,
        count: u32,
        data: &RowData,
        out: &mut Vec<StageEffect>,
    ) {
        let hidden = self.config.hidden;
        let Some(s) = self.sessions.get_mut(&session) else { return };
        let end = start.saturating_add(count);
        if s.attempt != attempt || index == 0 || end > s.max_len || data.len() != count as usize * hidden {
            return;
        }
        let Some((_, segment)) = s.hop(index as usize) else { return };
        // Nobody of this version sends more than there is room for.
        if start > segment.received || end <= segment.received || end > segment.granted {
            return;
        }
        let skipped = (segment.received - start) as usize * hidden;
        segment.inbox.push_back(data.slice(skipped, data.len()));
        let taken = (end - segment.received) as usize * hidden * size_of::<f32>();
        segment.received = end;
        s.feed(session, index as usize, hidden, out);
        self.bound_journals(taken);
    }

    /// Rule: room never shrinks within an attempt.
    pub(super) fn room(
        &mut self,
        session: SessionId,
        attempt: Attempt,
        index: u32,
        until: Position,
        out: &mut Vec<StageEffect>,
    ) {
        let Some(s) = self.sessions.get_mut(&session).filter(|s| s.attempt == attempt) else { return };
        let Some(index) = (index as usize).checked_sub(1) else { return };
        let Some((_, segment)) = s.hop(index) else { return };
        segment.limit = segment.limit.max(until);
        self.advance(session, index, out);
    }

    /// Rule: the first hop goes on with the token it expects and with no other.
    pub(super) fn token(
        &mut self,
        session: SessionId,
        attempt: Attempt,
        position: Position,
        token: u32,
        out: &mut Vec<StageEffect>,
    ) {
        let Some(s) = self.sessions.get_mut(&session).filter(|s| s.attempt == attempt) else { return };
        if s.tokens.len() == position as usize {
            Arc::make_mut(&mut s.tokens).push(token);
        }
        if s.tokens.len() == position as usize + 1 {
            s.feed(session, 0, self.config.hidden, out);
        }
    }

    /// A job is done. Rule: results of older attempts are nobody's; rows are journaled, and sent as far as the next hop lacks and takes them.
    pub fn computed(&mut self, done: Computed, now_ms: u64, out: &mut Vec<StageEffect>) {
        let session = done.session;
        let Some(s) = self.sessions.get_mut(&session) else { return };
        if s.attempt != done.attempt {
            return;
        }
        let Some(segment) = s.segments.get_mut(&done.layers) else { return };
        if segment.opened != done.attempt || segment.have != done.start {
            return;
        }
        let index = segment.index;
        let end = done.start + done.count;
        self.uses += 1;
        s.used = self.uses;
        match done.output {
            Output::Failed(reason) => {
                s.refuse(session, index, reason, out);
                return;
            }
            Output::Nothing => segment.have = end,
            Output::Rows(data) => {
                segment.have = end;
                let bytes = size_of_val(data.as_slice());
                segment.journal.push(done.start, data);
                self.advance(session, index, out);
                self.bound_journals(bytes);
            }
            Output::Token { token, logprob, top } => {
                segment.have = end;
                if s.tokens.len() == end as usize {
                    Arc::make_mut(&mut s.tokens).push(token);
                }
                let finish = s.finish(token);
                let (attempt, position) = (done.attempt, end);
                let frame = Frame::Token { session, attempt, position, token, logprob, top, finish };
                let gateway = Recipient::Gateway(s.gateway.clone());
                if finish.is_none() {
                    let first = s.route[0].clone();
                    self.send(&first, frame.clone(), out);
                }
                out.push(StageEffect::Send { to: gateway, frame });
            }
        }
        self.grant(session, index, out);
        self.settle(now_ms, out);
    }

    /// Sends what the next hop of `index` lacks and takes, and gives the engine what may be computed by that.
    pub(super) fn advance(&mut self, session: SessionId, index: usize, out: &mut Vec<StageEffect>) {
        let Some(s) = self.sessions.get_mut(&session) else { return };
        let next: Option<Hop> = s.route.get(index + 1).cloned();
        match s.forward(session, index) {
            Ok(frames) => {
                s.feed(session, index, self.config.hidden, out);
                if let Some(next) = next {
                    frames.into_iter().for_each(|frame| self.send(&next, frame, out));
                }
            }
            Err(reason) => s.refuse(session, index, reason, out),
        }
    }

    /// Tells the hop before `index` how much room there is now, if that is worth a frame.
    fn grant(&mut self, session: SessionId, index: usize, out: &mut Vec<StageEffect>) {
        let Some(s) = self.sessions.get_mut(&session) else { return };
        let (attempt, Some(before)) = (s.attempt, index.checked_sub(1).map(|before| s.route[before].clone()))
        else {
            return;
        };
        let Some(until) = s.hop(index).and_then(|(_, segment)| segment.grant()) else { return };
        let frame = Frame::Room { session, attempt, index: index as u32, until };
        if before.peer == self.config.name {
            self.local.push_back(frame);
        } else {
            out.push(StageEffect::Send { to: Recipient::Upstream(before.peer), frame });
        }
    }
}
