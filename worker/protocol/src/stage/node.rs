//! The rules of a stage. See docs/protocol.md for the whole; each handler states its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dunlin_planner::{Layers, PeerName, Position};

use super::{
    Computed, Destination, Input, Job, Journal, Output, SampleRequest, Sender, StageConfig, StageEffect,
};
use crate::frame::{Attempt, Frame, GatewayId, Held, Hop, Open, Refusal, RowData, SessionId};
use crate::sampling::{FinishReason, SamplingParams};

/// All sessions on one peer.
pub struct StageNode {
    config: StageConfig,
    held: Vec<Layers>,
    adapters: BTreeSet<Arc<str>>,
    sessions: BTreeMap<SessionId, Session>,
    /// When each gateway with sessions here was last heard of.
    heard_ms: BTreeMap<GatewayId, u64>,
    /// Counts up with each use of a session: the order in which journals are dropped.
    uses: u64,
    /// Frames to this peer itself, handled before anything else.
    local: VecDeque<Frame>,
}

struct Session {
    gateway: GatewayId,
    attempt: Attempt,
    route: Vec<Hop>,
    tokens: Arc<Vec<u32>>,
    prompt_len: u32,
    max_len: u32,
    sampling: Arc<SamplingParams>,
    eos: Arc<Vec<u32>>,
    adapter: Option<Arc<str>>,
    segments: BTreeMap<Layers, Segment>,
    /// A refusal was sent in this attempt: the gateway decides what is next.
    refused: bool,
    used: u64,
}

struct Segment {
    /// Which hop of the route it is.
    index: usize,
    /// The attempt in which it was opened last.
    opened: Attempt,
    /// Positions whose KV cache is in the engine.
    have: Position,
    /// Positions given to the engine; never less than `have`.
    queued: Position,
    /// Output rows; empty on the last hop.
    journal: Journal,
}

impl StageNode {
    /// A stage without sessions that holds no layers yet.
    #[must_use]
    pub fn new(config: StageConfig) -> Self {
        Self {
            config,
            held: Vec::new(),
            adapters: BTreeSet::new(),
            sessions: BTreeMap::new(),
            heard_ms: BTreeMap::new(),
            uses: 0,
            local: VecDeque::new(),
        }
    }

    /// The layers it can execute from now on.
    pub fn set_held(&mut self, held: Vec<Layers>) {
        self.held = held;
    }

    /// The adapters it can execute them with from now on.
    pub fn set_adapters(&mut self, adapters: BTreeSet<Arc<str>>) {
        self.adapters = adapters;
    }

    /// Values in a row; known once the model is.
    pub fn set_hidden(&mut self, hidden: usize) {
        self.config.hidden = hidden;
    }

    /// Bytes of all journals from now on; see [`StageConfig::journal_bytes_max`].
    pub fn set_journal_bytes_max(&mut self, bytes: usize) {
        self.config.journal_bytes_max = bytes;
        self.bound_journals();
    }

    /// Number of sessions.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Layer ranges that sessions use: they must stay loaded.
    #[must_use]
    pub fn layers_in_use(&self) -> Vec<Layers> {
        let mut all: Vec<Layers> = self.sessions.values().flat_map(|s| s.segments.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Bytes of all journals.
    #[must_use]
    pub fn journal_bytes(&self) -> usize {
        self.sessions.values().flat_map(|s| s.segments.values()).map(|s| s.journal.bytes()).sum()
    }

    /// What it holds of `gateway`'s sessions.
    #[must_use]
    pub fn held_of(&self, gateway: &GatewayId) -> Vec<Held> {
        let own = self.sessions.iter().filter(|(_, s)| s.gateway == *gateway);
        own.flat_map(|(&session, s)| {
            let attempt = s.attempt;
            s.segments.iter().map(move |(&layers, segment)| Held {
                session,
                attempt,
                layers,
                have: segment.have,
            })
        })
        .collect()
    }

    /// A gateway gave a sign of life.
    pub fn heard(&mut self, gateway: &GatewayId, now_ms: u64) {
        if let Some(heard_ms) = self.heard_ms.get_mut(gateway) {
            *heard_ms = now_ms;
        }
    }

    /// Frees the sessions of gateways whose lease has ended.
    pub fn tick(&mut self, now_ms: u64, out: &mut Vec<StageEffect>) {
        let lease_ms = self.config.lease_ms;
        self.heard_ms.retain(|gateway, heard_ms| {
            let alive = now_ms.saturating_sub(*heard_ms) < lease_ms;
            if !alive {
                self.sessions.retain(|&session, s| {
                    let keep = s.gateway != *gateway;
                    if !keep {
                        free_all(session, s, out);
                    }
                    keep
                });
            }
            alive
        });
    }

    /// A frame of a session arrived from `from`. Pings are the shell's.
    pub fn frame(&mut self, from: &Sender, frame: Frame, now_ms: u64, out: &mut Vec<StageEffect>) {
        if let Err(rule) = from.may_send(&frame).and_then(|()| self.may_send(from, &frame)) {
            out.push(StageEffect::Forbidden { from: from.clone(), rule });
            return;
        }
        self.local.push_back(frame);
        self.settle(now_ms, out);
    }

    /// Whether `frame` is `from`'s to send, as its session is routed. What is of another attempt is ignored anyway.
    fn may_send(&self, from: &Sender, frame: &Frame) -> Result<(), &'static str> {
        let session = |id: &SessionId| self.sessions.get(id);
        let routed = |id, attempt: &Attempt| session(id).filter(|s| s.attempt == *attempt);
        let is = |hop: Option<&Hop>| {
            hop.is_some_and(|hop| matches!(from, Sender::Peer(name) if *name == hop.peer))
        };
        let (fine, rule) = match frame {
            Frame::Rows { session, attempt, index, .. } => {
                let before = |s: &Session| is(index.checked_sub(1).and_then(|i| s.route.get(i as usize)));
                (routed(session, attempt).is_none_or(before), "rows come from the hop before")
            }
            Frame::Token { session, attempt, .. } => {
                (routed(session, attempt).is_none_or(|s| is(s.route.last())), "tokens come from the last hop")
            }
            Frame::Close { session: id, .. } => {
                let own = |s: &Session| matches!(from, Sender::Gateway(gateway) if *gateway == s.gateway);
                (session(id).is_none_or(own), "only its gateway closes a session")
            }
            _ => return Ok(()),
        };
        if fine { Ok(()) } else { Err(rule) }
    }

    /// Handles frames until none to this peer itself is left.
    fn settle(&mut self, now_ms: u64, out: &mut Vec<StageEffect>) {
        while let Some(frame) = self.local.pop_front() {
            match frame {
                Frame::Open(open) => self.open(open, now_ms, out),
                Frame::Rows { session, attempt, index, start, count, data } => {
                    self.rows(session, attempt, index, start, count, &data, out);
                }
                Frame::Token { session, attempt, position, token, .. } => {
                    self.token(session, attempt, position, token, out);
                }
                Frame::Close { session, attempt } => self.close(session, attempt, out),
                Frame::Refused { .. } | Frame::Ping { .. } | Frame::Pong { .. } => {}
            }
        }
    }

    /// The link to a peer is down: gateways of sessions that need it are told.
    pub fn link_down(&mut self, to: &PeerName, out: &mut Vec<StageEffect>) {
        let reason = Refusal::LinkDown { to: to.clone() };
        for (&session, s) in &mut self.sessions {
            let last = s.route.len() - 1;
            let needs = |segment: &Segment| {
                let next = if segment.index == last { 0 } else { segment.index + 1 };
                s.route.get(next).is_some_and(|hop| hop.peer == *to)
            };
            let from = s.segments.values().find(|segment| needs(segment)).map(|segment| segment.index);
            if let Some(index) = from {
                refuse(session, s, index, reason.clone(), out);
            }
        }
    }

    /// Rule: only a higher attempt changes anything; what is kept is cut to the first position to be received; a segment that cannot start
    /// there says so and passes nothing on. The next hop hears of the attempt before it gets any row.
    fn open(&mut self, open: Open, now_ms: u64, out: &mut Vec<StageEffect>) {
        let (session, index) = (open.session, open.index as usize);
        if let Err(reason) = self.check(&open) {
            let gateway = Destination::Gateway(open.gateway.clone());
            let frame = Frame::Refused { session, attempt: open.attempt, index: open.index, reason };
            out.push(StageEffect::Send { to: gateway, frame });
            return;
        }
        if let Some(known) = self.sessions.get(&session) {
            let repeated = known.attempt == open.attempt
                && known.segments.values().any(|s| s.index == index && s.opened == open.attempt);
            if known.attempt > open.attempt || repeated {
                return;
            }
        }
        self.uses += 1;
        self.heard_ms.entry(open.gateway.clone()).or_insert(now_ms);
        let me = self.config.name.clone();
        let s = self.sessions.entry(session).or_insert_with(|| Session::new(&open));
        if open.attempt > s.attempt || s.segments.is_empty() {
            s.begin(&open);
            let route = &s.route;
            s.segments.retain(|&layers, _| {
                let keep = route.iter().any(|hop| hop.peer == me && hop.layers == layers);
                if !keep {
                    out.push(StageEffect::Free { session, layers });
                }
                keep
            });
        }
        s.used = self.uses;
        let hop = s.route[index].clone();
        let have = s.segments.get(&hop.layers).map_or(0, |segment| segment.have);
        if hop.from > have {
            refuse(session, s, index, Refusal::NeedReplay { have }, out);
            // Nothing of it is held here, so nobody would ever close it.
            if s.segments.is_empty() {
                self.sessions.remove(&session);
            }
            return;
        }
        let hidden = self.config.hidden;
        let segment = s.segments.entry(hop.layers).or_insert_with(|| Segment::new(hidden));
        if segment.queued > hop.from {
            out.push(StageEffect::Truncate { session, layers: hop.layers, to: hop.from });
        }
        segment.restart(index, open.attempt, hop.from);
        if let Some(next) = s.route.get(index + 1).cloned() {
            let Some(replay) = segment.journal.rows(next.from.min(hop.from), hop.from) else {
                refuse(session, s, index, Refusal::NoJournal, out);
                return;
            };
            let attempt = open.attempt;
            let index = open.index + 1;
            send(&me, &mut self.local, &next, Frame::Open(Open { index, ..open }), out);
            for (start, count, data) in replay {
                let frame = Frame::Rows { session, attempt, index, start, count, data };
                send(&me, &mut self.local, &next, frame, out);
            }
        }
        if index == 0 {
            s.compute_tokens(session, out);
        }
    }

    fn check(&self, open: &Open) -> Result<(), Refusal> {
        let bad = |message: &str| Err(Refusal::BadRequest { message: message.to_owned() });
        let Some(hop) = open.route.get(open.index as usize) else {
            return bad("the hop is not in the route");
        };
        if hop.peer != self.config.name {
            return bad("the hop is another peer's");
        }
        if open.tokens.is_empty() || open.prompt_len as usize > open.tokens.len() {
            return bad("no tokens, or fewer than the prompt");
        }
        if open.tokens.len() >= open.max_len as usize {
            return bad("the sequence has its full length already");
        }
        if open.route.iter().any(|hop| hop.from as usize >= open.tokens.len()) {
            return bad("a hop starts behind the last token");
        }
        if self.sessions.get(&open.session).is_some_and(|s| s.gateway != open.gateway) {
            return bad("the session is another gateway's");
        }
        if self.sessions.get(&open.session).is_some_and(|s| s.adapter != open.adapter) {
            return bad("the session has another adapter");
        }
        if !self.held.iter().any(|held| held.covers(hop.layers)) {
            return Err(Refusal::NotHolding { layers: hop.layers });
        }
        if let Some(name) = open.adapter.as_ref().filter(|name| !self.adapters.contains(*name)) {
            return Err(Refusal::NoAdapter { name: name.to_string() });
        }
        if !self.sessions.contains_key(&open.session) && self.sessions.len() >= self.config.sessions_max {
            return Err(Refusal::TooManySessions);
        }
        Ok(())
    }

    /// Rule: rows of the current attempt that continue what was received are taken; what was had is dropped; a gap is not filled here (the
    /// gateway notices that nothing goes on).
    fn rows(
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
        if s.attempt != attempt || end > s.max_len || data.len() != count as usize * hidden {
            return;
        }
        let last = index as usize + 1 == s.route.len();
        let Some((&layers, segment)) = s.segments.iter_mut().find(|(_, g)| g.index == index as usize) else {
            return;
        };
        if segment.opened != attempt || start > segment.queued || end <= segment.queued {
            return;
        }
        let first = segment.queued;
        let fresh = data.slice((first - start) as usize * hidden, data.len());
        segment.queued = end;
        let sample = (last && end as usize == s.tokens.len()).then(|| s.sample_request());
        out.push(StageEffect::Compute(Job {
            session,
            attempt,
            layers,
            adapter: s.adapter.clone(),
            start: first,
            count: end - first,
            input: Input::Rows(fresh),
            last,
            sample,
        }));
    }

    /// Rule: the first hop goes on with the token it expects and with no other.
    fn token(
        &mut self,
        session: SessionId,
        attempt: Attempt,
        position: Position,
        token: u32,
        out: &mut Vec<StageEffect>,
    ) {
        let Some(s) = self.sessions.get_mut(&session) else { return };
        if s.attempt != attempt {
            return;
        }
        if s.tokens.len() == position as usize {
            Arc::make_mut(&mut s.tokens).push(token);
        }
        if s.tokens.len() == position as usize + 1 {
            s.compute_tokens(session, out);
        }
    }

    fn close(&mut self, session: SessionId, attempt: Attempt, out: &mut Vec<StageEffect>) {
        if let Some(s) = self.sessions.get(&session)
            && s.attempt <= attempt
        {
            free_all(session, s, out);
            self.sessions.remove(&session);
        }
    }

    /// A job is done. Rule: results of older attempts are nobody's; rows are journaled, and sent as far as the next hop lacks them.
    pub fn computed(&mut self, done: Computed, now_ms: u64, out: &mut Vec<StageEffect>) {
        let me = self.config.name.clone();
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
                refuse(session, s, index, reason, out);
                return;
            }
            Output::Nothing => segment.have = end,
            Output::Rows(data) => {
                segment.have = end;
                segment.journal.push(done.start, data.clone());
                if let Some(next) = s.route.get(index + 1).cloned()
                    && next.from < end
                {
                    let start = next.from.max(done.start);
                    let data = data.slice((start - done.start) as usize * self.config.hidden, data.len());
                    let (attempt, index) = (done.attempt, index as u32 + 1);
                    let frame = Frame::Rows { session, attempt, index, start, count: end - start, data };
                    send(&me, &mut self.local, &next, frame, out);
                }
            }
            Output::Token { token, logprob, top } => {
                segment.have = end;
                if s.tokens.len() == end as usize {
                    Arc::make_mut(&mut s.tokens).push(token);
                }
                let finish = s.finish(token);
                let frame = Frame::Token {
                    session,
                    attempt: done.attempt,
                    position: end,
                    token,
                    logprob,
                    top,
                    finish,
                };
                let gateway = Destination::Gateway(s.gateway.clone());
                if finish.is_none() {
                    send(&me, &mut self.local, &s.route[0].clone(), frame.clone(), out);
                }
                out.push(StageEffect::Send { to: gateway, frame });
            }
        }
        self.bound_journals();
        self.settle(now_ms, out);
    }

    /// Drops journals, least recently used session first, until they fit. Replay then starts one hop earlier.
    fn bound_journals(&mut self) {
        let mut bytes = self.journal_bytes();
        while bytes > self.config.journal_bytes_max {
            let oldest = self
                .sessions
                .values_mut()
                .filter(|s| s.segments.values().any(|g| g.journal.bytes() > 0))
                .min_by_key(|s| s.used);
            let Some(s) = oldest else { return };
            for segment in s.segments.values_mut() {
                bytes -= segment.journal.bytes();
                segment.journal.drop_rows();
            }
        }
    }
}

impl Session {
    fn new(open: &Open) -> Self {
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
            refused: false,
            used: 0,
        }
    }

    /// Takes over what a new attempt says.
    fn begin(&mut self, open: &Open) {
        self.attempt = open.attempt;
        self.route.clone_from(&open.route);
        self.tokens = Arc::clone(&open.tokens);
        self.max_len = open.max_len;
        self.refused = false;
    }

    fn sample_request(&self) -> SampleRequest {
        SampleRequest {
            params: Arc::clone(&self.sampling),
            tokens: Arc::clone(&self.tokens),
            prompt_len: self.prompt_len,
        }
    }

    /// Gives the engine every known token that the first hop has not had.
    fn compute_tokens(&mut self, session: SessionId, out: &mut Vec<StageEffect>) {
        let last = self.route.len() == 1;
        let sample = last.then(|| self.sample_request());
        let known = self.tokens.len() as Position;
        let Some((&layers, segment)) = self.segments.iter_mut().find(|(_, g)| g.index == 0) else { return };
        if segment.opened != self.attempt || segment.queued >= known {
            return;
        }
        let start = segment.queued;
        segment.queued = known;
        let input = Input::Tokens(self.tokens[start as usize..].to_vec());
        let (attempt, count) = (self.attempt, known - start);
        let adapter = self.adapter.clone();
        out.push(StageEffect::Compute(Job {
            session,
            attempt,
            layers,
            adapter,
            start,
            count,
            input,
            last,
            sample,
        }));
    }

    fn finish(&self, token: u32) -> Option<FinishReason> {
        if self.eos.contains(&token) {
            Some(FinishReason::Eos)
        } else if self.tokens.len() >= self.max_len as usize {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

impl Segment {
    fn new(hidden: usize) -> Self {
        Self { index: 0, opened: 0, have: 0, queued: 0, journal: Journal::starting_at(0, hidden) }
    }

    fn restart(&mut self, index: usize, attempt: Attempt, from: Position) {
        self.index = index;
        self.opened = attempt;
        self.have = from;
        self.queued = from;
        self.journal.truncate(from);
    }
}

/// Tells the gateway once per attempt; it answers with another one.
fn refuse(session: SessionId, s: &mut Session, index: usize, reason: Refusal, out: &mut Vec<StageEffect>) {
    if s.refused {
        return;
    }
    s.refused = true;
    let frame = Frame::Refused { session, attempt: s.attempt, index: index as u32, reason };
    out.push(StageEffect::Send { to: Destination::Gateway(s.gateway.clone()), frame });
}

fn free_all(session: SessionId, s: &Session, out: &mut Vec<StageEffect>) {
    out.extend(s.segments.keys().map(|&layers| StageEffect::Free { session, layers }));
}

fn send(me: &PeerName, local: &mut VecDeque<Frame>, hop: &Hop, frame: Frame, out: &mut Vec<StageEffect>) {
    if hop.peer == *me {
        local.push_back(frame);
    } else {
        let to = Destination::Peer { name: hop.peer.clone(), addr: hop.addr.clone() };
        out.push(StageEffect::Send { to, frame });
    }
}
