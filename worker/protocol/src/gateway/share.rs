//! Sessions at the end of a long line go to where the line is short.
//!
//! After a loss one peer has the lost layers of every session to compute again, and a while later its replacement is there and idle.

use std::collections::BTreeMap;

use dunlin_swarm::{Load, PeerName, RouteHop};

use super::core::GatewayCore;
use super::routes::Way;
use super::session::{Phase, Session};
use super::shell::GatewayEffect;
use crate::frame::SessionId;

/// A line that is no longer than this many rows is left as it is.
const LINE_ROWS_MIN: f64 = 256.0;
/// A session that leaves a line is done elsewhere in at most this part of the time: what is known of lines is a pong old.
const PART_OF_TIME: f64 = 0.75;

/// A session that would lose nothing by leaving one of its hops.
struct Waiting {
    born_ms: u64,
    id: SessionId,
    hop: usize,
}

impl GatewayCore {
    /// Rule: of whom a hop has computed nothing may leave it, if its peer stands in for another, for a peer that has the layers as its
    /// own. The youngest leave first, as long as they are done there in clearly less time than the line takes in which they are.
    pub(super) fn share_lines(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let mut lines = self.lines();
        let crowded: Vec<PeerName> =
            lines.iter().filter(|(_, rows)| **rows > LINE_ROWS_MIN).map(|(name, _)| name.clone()).collect();
        for peer in crowded {
            let mut waiting: Vec<Waiting> = self
                .sessions
                .iter()
                .filter_map(|(&id, s)| Some(Waiting { born_ms: s.born_ms, id, hop: untouched(s, &peer)? }))
                .collect();
            waiting.sort_unstable_by_key(|w| std::cmp::Reverse((w.born_ms, w.id)));
            for Waiting { id, hop, .. } in waiting {
                let s = &self.sessions[&id];
                let rows = f64::from(s.resume_from());
                let Some((other, way)) = self.elsewhere(s, hop, &lines, rows) else { break };
                if self.lacks_pages(id, &way.hops, now_ms).is_none() {
                    *lines.entry(peer.clone()).or_default() -= rows;
                    *lines.entry(other).or_default() += rows;
                    self.uncount(id, hop);
                    self.begin(id, way, now_ms, out);
                }
            }
        }
    }

    /// Rows in the line of each peer: those that it reports, or those that sessions here will send it, if that is more. A session sends no
    /// more than a window at a time. Those that move are counted where they go.
    fn lines(&self) -> BTreeMap<PeerName, f64> {
        let mut own: BTreeMap<PeerName, f64> = BTreeMap::new();
        for s in self.sessions.values().filter(|s| s.phase == Phase::Running && !s.filled) {
            for hop in &s.route {
                let known = s.known.get(&(hop.peer.clone(), hop.layers)).copied().unwrap_or(0);
                *own.entry(hop.peer.clone()).or_default() += f64::from(s.resume_from().saturating_sub(known));
            }
        }
        let line = |(name, load): (&PeerName, &Load)| {
            let own = own.get(name).copied().unwrap_or(0.0);
            (name.clone(), own.max(f64::from(load.queue_rows)))
        };
        self.loads().iter().map(line).collect()
    }

    /// The rows of a hop that computed none of them are not computed again: they are counted where they go.
    fn uncount(&mut self, id: SessionId, hop: usize) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        let rows = u64::from(s.resume_from() - s.route[hop].from);
        if let Some(disturbed) = &mut s.disturbed {
            disturbed.rows = disturbed.rows.saturating_sub(rows);
        }
    }

    /// The peer where hop `index` of a session is done soonest, and its way with that, if it is worth going there.
    fn elsewhere(
        &self,
        s: &Session,
        index: usize,
        lines: &BTreeMap<PeerName, f64>,
        rows: f64,
    ) -> Option<(PeerName, Way)> {
        let topology = self.topology()?;
        let (hop, slow) = (&s.route[index], self.slow());
        let is_own = |name: &PeerName| topology.peer(name).is_some_and(|p| p.span.covers(hop.layers));
        if is_own(&hop.peer) {
            return None;
        }
        let seconds = |name: &PeerName, rows: f64| {
            let rate = self.loads().get(name).map_or(0.0, |load| load.rows_per_s_per_layer);
            rows / rate.max(1e-9)
        };
        let line = |name: &PeerName| lines.get(name).copied().unwrap_or(0.0);
        let is_choice = |name: &PeerName, load: &Load| {
            is_own(name)
                && self.up().contains(name)
                && !slow.contains(name)
                && !s.avoid.contains_key(name)
                && !load.draining
                && s.arithmetic == load.arithmetic
                && load.held.iter().any(|held| held.covers(hop.layers))
        };
        let choices = self.loads().iter().filter(|(name, load)| is_choice(name, load));
        let times = choices.map(|(name, _)| (seconds(name, line(name) + rows), name));
        let (there_s, other) = times.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)))?;
        if there_s > PART_OF_TIME * seconds(&hop.peer, line(&hop.peer)) {
            return None;
        }
        let addr = topology.peer(other)?.addr.clone();
        let mut hops: Vec<RouteHop> = s
            .route
            .iter()
            .map(|h| RouteHop { peer: h.peer.clone(), addr: h.addr.clone(), layers: h.layers })
            .collect();
        hops[index] = RouteHop { peer: other.clone(), addr, layers: hop.layers };
        Some((other.clone(), Way { arithmetic: s.arithmetic, hops }))
    }
}

/// The hop on `peer` of which nothing is computed yet.
fn untouched(s: &Session, peer: &PeerName) -> Option<usize> {
    if s.phase != Phase::Running || s.filled {
        return None;
    }
    s.route.iter().position(|hop| {
        let known = s.known.get(&(hop.peer.clone(), hop.layers)).copied().unwrap_or(0);
        hop.peer == *peer && hop.from == 0 && known == 0
    })
}
