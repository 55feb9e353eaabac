//! One session, and one of its segments, as a stage sees them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dunlin_swarm::limits::{FIRST_WINDOW_ROWS, ROWS_BYTES_MAX};
use dunlin_swarm::{Layers, Paging, Position};

use super::journal::Journal;
use super::shell::{Input, Line, Recipient, SampleRequest, StageEffect, StageJob, Urgency};
use crate::frame::{Attempt, Frame, GatewayId, Hop, Open, Refusal, RowData, SessionId, WINDOW_ROWS};
use crate::sampling::{FinishReason, SamplingParams};
use crate::windows::Windows;

/// As few rows as this are a step of a sequence that waits for its next token.
const STEP_ROWS: u32 = 4;

pub(super) struct Session {
    pub gateway: GatewayId,
    pub attempt: Attempt,
    pub route: Vec<Hop>,
    pub tokens: Arc<Vec<u32>>,
    pub prompt_len: u32,
    pub max_len: u32,
    pub sampling: Arc<SamplingParams>,
    pub eos: Arc<Vec<u32>>,
    pub adapter: Option<Arc<str>>,
    pub segments: BTreeMap<Layers, Segment>,
    /// When its gateway took it: its place in every line.
    pub born_ms: u64,
    /// Tokens that were known when the attempt began: up to them rows are made again, or the prompt's.
    pub opened_len: Position,
    /// A refusal was sent in this attempt: the gateway decides what is next.
    pub refused: bool,
    /// When it was used last, in the order of uses.
    pub used: u64,
}

/// Positions of a segment, in the order in which they pass: `have <= given <= received`, and `sent <= journal.end()` unless the next hop
/// has more than this one.
pub(super) struct Segment {
    /// Which hop of the route it is.
    pub index: usize,
    /// The attempt in which it was opened last.
    pub opened: Attempt,
    /// Positions whose KV cache is in the engine.
    pub have: Position,
    /// Positions given to the engine.
    pub given: Position,
    /// The most that were ever given: what the engine has given back behind windows goes by it.
    pub reached: Position,
    /// Positions whose input has arrived; what is not given yet is in `inbox`.
    pub received: Position,
    pub inbox: VecDeque<RowData>,
    /// The hop before knows that rows before this position may be sent.
    pub granted: Position,
    /// Output rows; empty on the last hop.
    pub journal: Journal,
    /// Output rows before this position are sent, or the next hop does not need them.
    pub sent: Position,
    /// The next hop takes rows before this position.
    pub limit: Position,
}

impl Session {
    pub fn new(open: &Open) -> Self {
        Self {
            gateway: open.gateway.clone(),
            attempt: open.attempt,
            route: open.route.clone(),
            tokens: Arc::clone(&open.tokens),
            prompt_len: open.prompt_len,
            max_len: open.max_len,
            sampling: Arc::clone(&open.sampling),
            eos: Arc::clone(&open.eos),
            adapter: open.adapter.clone(),
            segments: BTreeMap::new(),
            born_ms: open.born_ms,
            opened_len: open.tokens.len() as Position,
            refused: false,
            used: 0,
        }
    }

    /// Takes over what a new attempt says.
    pub fn begin(&mut self, open: &Open) {
        self.attempt = open.attempt;
        self.route.clone_from(&open.route);
        self.tokens = Arc::clone(&open.tokens);
        self.opened_len = open.tokens.len() as Position;
        self.max_len = open.max_len;
        self.refused = false;
    }

    /// The segment of hop `index`, if it is open in this attempt.
    pub fn hop(&mut self, index: usize) -> Option<(Layers, &mut Segment)> {
        let attempt = self.attempt;
        let found = self.segments.iter_mut().find(|(_, g)| g.index == index && g.opened == attempt)?;
        Some((*found.0, found.1))
    }

    /// Gives the engine what has arrived for hop `index`, as far as the next hop will take what comes of it.
    pub fn feed(&mut self, session: SessionId, index: usize, hidden: usize, out: &mut Vec<StageEffect>) {
        let last = index + 1 == self.route.len();
        let known = self.tokens.len() as Position;
        let (attempt, opened_len) = (self.attempt, self.opened_len);
        let is_replay = opened_len > self.prompt_len;
        let born_ms = self.born_ms;
        let adapter = self.adapter.clone();
        let tokens = Arc::clone(&self.tokens);
        let request = SampleRequest {
            params: Arc::clone(&self.sampling),
            tokens: Arc::clone(&self.tokens),
            prompt_len: self.prompt_len,
        };
        let Some((layers, segment)) = self.hop(index) else { return };
        if index == 0 {
            segment.received = segment.received.max(known);
        }
        let until = if last { Position::MAX } else { segment.limit.saturating_add(WINDOW_ROWS) };
        let until = until.min(segment.received);
        while segment.given < until {
            let start = segment.given;
            let input = if index == 0 {
                segment.given = until;
                Input::Tokens(tokens[start as usize..until as usize].to_vec())
            } else {
                let Some(rows) = segment.inbox.pop_front() else { return };
                let count = (rows.len() / hidden) as Position;
                let taken = count.min(until - start);
                if taken < count {
                    segment.inbox.push_front(rows.slice(taken as usize * hidden, rows.len()));
                }
                segment.given = start + taken;
                Input::Rows(rows.slice(0, taken as usize * hidden))
            };
            let (end, count) = (segment.given, segment.given - start);
            let urgency = match () {
                () if count <= STEP_ROWS && end >= opened_len => Urgency::Step,
                () if is_replay => Urgency::Replay,
                () => Urgency::Prompt,
            };
            out.push(StageEffect::Compute(StageJob {
                session,
                attempt,
                layers,
                adapter: adapter.clone(),
                line: Line { urgency, born_ms },
                start,
                count,
                input,
                last,
                sample: (last && end == known).then(|| request.clone()),
            }));
        }
    }

    /// Frames of the rows that the next hop of `index` lacks and takes.
    ///
    /// # Errors
    /// When the journal no longer has them.
    pub fn forward(&mut self, session: SessionId, index: usize) -> Result<Vec<Frame>, Refusal> {
        let attempt = self.attempt;
        let Some((_, segment)) = self.hop(index) else { return Ok(Vec::new()) };
        let to = segment.journal.end().min(segment.limit);
        if segment.sent >= to {
            return Ok(Vec::new());
        }
        let rows = segment.journal.rows(segment.sent, to, ROWS_BYTES_MAX).ok_or(Refusal::NoJournal)?;
        segment.sent = to;
        let index = index as u32 + 1;
        let frame = |(start, count, data)| Frame::Rows { session, attempt, index, start, count, data };
        Ok(rows.into_iter().map(frame).collect())
    }

    /// KV pages that count as taken: those that its segments have, and a little ahead.
    pub fn pages(&self, windows: &Windows) -> u64 {
        let positions = counted_positions(self.tokens.len(), self.max_len);
        self.segments.keys().map(|layers| u64::from(windows.pages(*layers, positions))).sum()
    }

    /// Does this token end the sequence, being its last?
    pub fn finish(&self, token: u32) -> Option<FinishReason> {
        if self.eos.contains(&token) {
            Some(FinishReason::Eos)
        } else if self.tokens.len() >= self.max_len as usize {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Tells the gateway once per attempt; it answers with another one.
    pub fn refuse(&mut self, session: SessionId, index: usize, reason: Refusal, out: &mut Vec<StageEffect>) {
        if self.refused {
            return;
        }
        self.refused = true;
        let frame = Frame::Refused { session, attempt: self.attempt, index: index as u32, reason };
        out.push(StageEffect::Send { to: Recipient::Gateway(self.gateway.clone()), frame });
    }

    pub fn free_all(&self, session: SessionId, out: &mut Vec<StageEffect>) {
        out.extend(self.segments.keys().map(|&layers| StageEffect::Free { session, layers }));
    }
}

/// Positions whose KV pages count as taken by a sequence of `len` tokens.
pub(super) fn counted_positions(len: usize, max_len: u32) -> Position {
    Paging::OWN.counted_positions(len as Position, max_len)
}

impl Segment {
    pub fn new(hidden: usize) -> Self {
        Self {
            index: 0,
            opened: 0,
            have: 0,
            given: 0,
            reached: 0,
            received: 0,
            inbox: VecDeque::new(),
            granted: 0,
            journal: Journal::starting_at(0, hidden),
            sent: 0,
            limit: 0,
        }
    }

    /// Begins an attempt as hop `index`: its input starts at `from`, the next hop's at `next_from`.
    pub fn restart(&mut self, index: usize, attempt: Attempt, from: Position, next_from: Option<Position>) {
        self.index = index;
        self.opened = attempt;
        self.reached = self.most_given();
        (self.have, self.given, self.received) = (from, from, from);
        self.inbox.clear();
        // Neither has heard the other yet.
        self.granted = from + FIRST_WINDOW_ROWS;
        self.journal.truncate(from);
        self.sent = next_from.unwrap_or(from);
        self.limit = self.sent + FIRST_WINDOW_ROWS;
    }

    /// The most positions that the engine may ever have had.
    pub fn most_given(&self) -> Position {
        self.reached.max(self.given)
    }

    /// Rows that the engine has been given and has not computed.
    pub fn in_line(&self) -> u32 {
        self.given - self.have
    }

    /// Rows that have arrived and are not computed, those that the next hop has no room for among them.
    fn waiting(&self) -> u32 {
        self.received - self.have
    }

    /// Bytes of those; a first hop has tokens in their place.
    pub fn waiting_bytes(&self, hidden: usize) -> usize {
        if self.index == 0 { 0 } else { self.waiting() as usize * hidden * size_of::<f32>() }
    }

    /// A new limit for the hop before, when enough has been computed since the last.
    pub fn grant(&mut self) -> Option<Position> {
        let until = self.have + WINDOW_ROWS;
        if until < self.granted + WINDOW_ROWS / 2 {
            return None;
        }
        self.granted = until;
        Some(until)
    }
}
