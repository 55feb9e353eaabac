//! How a session begins on a stage, or begins again.

use dunlin_swarm::PeerName;

use super::node::StageNode;
use super::session::{Segment, Session, counted_positions};
use super::shell::{Recipient, StageEffect};
use crate::frame::{Frame, Open, Refusal, SessionId};

impl StageNode {
    /// Rule: only a higher attempt changes anything; what is kept is cut to the first position to be received; a segment that cannot start
    /// there says so and passes nothing on. The next hop hears of the attempt before it gets any row.
    pub(super) fn open(&mut self, open: Open, now_ms: u64, out: &mut Vec<StageEffect>) {
        let (session, index) = (open.session, open.index as usize);
        if let Err(reason) = self.check(&open) {
            let gateway = Recipient::Gateway(open.gateway.clone());
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
        self.lease(&open.gateway, now_ms);
        let me = &self.config.name;
        let s = self.sessions.entry(session).or_insert_with(|| Session::new(&open));
        if open.attempt > s.attempt || s.segments.is_empty() {
            s.begin(&open);
            free_what_is_elsewhere_now(s, session, me, out);
        }
        s.used = self.uses;
        let hop = s.route[index].clone();
        let next = s.route.get(index + 1).cloned();
        let segment = s.segments.get(&hop.layers);
        let mut have = segment.map_or(0, |segment| segment.have);
        // The engine may have given back what rows from there on see.
        if segment.is_some_and(|known| !self.config.windows.can_cut(hop.layers, known.most_given(), hop.from))
        {
            s.segments.remove(&hop.layers);
            out.push(StageEffect::Free { session, layers: hop.layers });
            have = 0;
        }
        if hop.from > have {
            s.refuse(session, index, Refusal::NeedReplay { have }, out);
            // Nothing of it is held here, so nobody would ever close it.
            if s.segments.is_empty() {
                self.sessions.remove(&session);
            }
            return;
        }
        let hidden = self.config.hidden;
        let segment = s.segments.entry(hop.layers).or_insert_with(|| Segment::new(hidden));
        if segment.given > hop.from {
            out.push(StageEffect::Truncate { session, layers: hop.layers, to: hop.from });
        }
        segment.restart(index, open.attempt, hop.from, next.as_ref().map(|next| next.from));
        if let Some(next) = next {
            if next.from < hop.from && next.from < segment.journal.start() {
                s.refuse(session, index, Refusal::NoJournal, out);
                return;
            }
            self.send(&next, Frame::Open(Open { index: open.index + 1, ..open }), out);
        }
        self.advance(session, index, out);
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
        let own = self.config.arithmetic;
        if open.arithmetic.is_some_and(|said| said != own) {
            return Err(Refusal::OtherArithmetic { own });
        }
        if !self.held.iter().any(|held| held.covers(hop.layers)) {
            return Err(Refusal::NotHolding { layers: hop.layers });
        }
        // A gateway and a stage of different settings meet while `maxSequenceLength` is being changed.
        if open.max_len > self.config.positions_max {
            let (wanted, most) = (open.max_len, self.config.positions_max);
            return bad(&format!(
                "a sequence of up to {wanted} tokens on {}, whose longest is {most}; start all with the same --max-seq-len",
                self.config.name
            ));
        }
        if let Some(name) = open.adapter.as_ref().filter(|name| !self.adapters.contains(*name)) {
            return Err(Refusal::NoAdapter { name: name.to_string() });
        }
        if self.sessions.contains_key(&open.session) {
            return Ok(());
        }
        if self.sessions.len() >= self.config.sessions_max {
            return Err(Refusal::TooManySessions);
        }
        // Gateways look before, but two of them may look at once. An answer that has begun is let in: younger ones make room for it.
        let has_begun = open.tokens.len() > open.prompt_len as usize;
        let positions = counted_positions(open.tokens.len(), open.max_len);
        if !has_begun && self.config.windows.pages(hop.layers, positions) > self.spare_pages() {
            return Err(Refusal::NoPages);
        }
        Ok(())
    }
}

/// Frees the segments of a session that its route has at other peers now.
fn free_what_is_elsewhere_now(
    s: &mut Session,
    session: SessionId,
    me: &PeerName,
    out: &mut Vec<StageEffect>,
) {
    let route = &s.route;
    s.segments.retain(|&layers, _| {
        let keep = route.iter().any(|hop| hop.peer == *me && hop.layers == layers);
        if !keep {
            out.push(StageEffect::Free { session, layers });
        }
        keep
    });
}
