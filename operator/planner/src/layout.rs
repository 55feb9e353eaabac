//! Which layers each peer executes and which it holds for others. Stable: a peer that is replaced gives its place to the replacement, and
//! nobody else moves; layers move only when the number of peers changes, when a place stays empty for long, or when the slowest
//! stage gets much faster.
//!
//! While peers still load, everybody keeps what it held before: a layer is never dropped before its new holders report it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use dunlin_swarm::{Layers, PeerState, Topology, TopologyError, TopologyPeer, layer_set, ranges};
use thiserror::Error;

use crate::cut::{cut, gain_percent, gaps, places};
use crate::member::Member;
use crate::shadow::shadows;
use crate::wanted::LayoutGoal;

/// What the caller, who knows the time, allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct May {
    /// Replacements took too long: those that are there share the open layers.
    pub fill_gaps: bool,
    /// Newcomers that have no place need not wait for the others.
    pub grow: bool,
    /// The layout has been worse than the best one for long enough.
    pub rebalance: bool,
}

/// Why the spans are as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// As before.
    #[default]
    Kept,
    /// Nobody had a place before.
    First,
    /// Newcomers took the places of lost peers.
    Replaced,
    /// A place is empty: its layers run from shadows.
    Waits,
    /// Another number of peers.
    Resized,
    /// A replacement took too long.
    GapFilled,
    /// The slowest stage gets faster by so many percent.
    Rebalanced(u32),
    /// A span did not fit into its peer's memory.
    Refitted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::Kept => "nobody moves",
            Self::First => "first layout",
            Self::Replaced => "replacements took the places of lost peers",
            Self::Waits => "a lost peer's layers run from shadows until a replacement joins",
            Self::Resized => "cut anew for another number of peers",
            Self::GapFilled => "cut anew because no replacement came",
            Self::Rebalanced(percent) => {
                return write!(
                    f,
                    "cut anew by the measured speed of the peers: the slowest stage gets {percent} % faster"
                );
            }
            Self::Refitted => "cut anew to fit into memory",
        };
        f.write_str(words)
    }
}

/// Memory does not suffice.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Shortage {
    /// For the layers that a peer executes.
    #[error(
        "{layers} layers need {need_mib} MiB, with the KV cache of one sequence of the greatest length, and a peer of pool {pool} has room for \
         {has_mib}: raise memory.host{}, or lower model.maxSequenceLength",
        more_peers(*.peers)
    )]
    Span {
        /// Pool of the peer.
        pool: String,
        /// Layers of its span.
        layers: u32,
        /// What they need, in MiB.
        need_mib: u64,
        /// What it has room for, in MiB.
        has_mib: u64,
        /// With so many peers like it the model would fit, if with any number.
        peers: Option<u32>,
    },
    /// For shadows.
    #[error(
        "the peers have no room for {0} shadow layers: raise memory.host or the number of peers, or lower redundancy.shadows"
    )]
    Shadows(u32),
}

fn more_peers(peers: Option<u32>) -> String {
    peers.map_or_else(String::new, |peers| format!(", or the number of peers to {peers}"))
}

/// A topology with the words for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Who holds what.
    pub topology: Topology,
    /// What was changed and why, in words for people.
    pub reason: Reason,
    /// Every layer is in some peer's span.
    pub covered: bool,
    /// Everybody has loaded what it was given.
    pub settled: bool,
    /// Memory does not suffice.
    pub shortage: Option<Shortage>,
    /// By how many percent the slowest stage would get faster if [`May::rebalance`] were allowed; 0 when that is not worth it.
    pub gain_percent: u32,
    /// Peers without a place that wait for others; see [`May::grow`].
    pub spare: usize,
}

/// The layout for `members`. Leaving ones (`Draining`) stay usable with what they hold, and nothing is planned on them.
///
/// # Errors
/// A broken bound of the result: a bug or a senseless model.
pub fn layout(
    wanted: &LayoutGoal,
    members: &[Member],
    previous: Option<&Topology>,
    may: May,
) -> Result<Layout, TopologyError> {
    let epoch = previous.map_or(0, |p| p.epoch);
    let previous = previous.filter(|p| p.model.digest == wanted.model.digest && p.layers == wanted.layers());
    let (leaving, mut staying): (Vec<&Member>, Vec<&Member>) =
        members.iter().partition(|m| m.state == PeerState::Draining);
    staying.sort_by(|a, b| a.name.cmp(&b.name));
    let spans = spans(wanted, &staying, previous, may);
    let (order, cuts): (Vec<&Member>, Vec<Layers>) = spans.placed.into_iter().unzip();
    let before = |member: &Member| previous.and_then(|p| p.peer(&member.name));
    let hold = |member: &Member| before(member).map(TopologyPeer::hold).unwrap_or_default();
    let had: Vec<BTreeSet<u32>> =
        order.iter().map(|m| layer_set(&[m.held.clone(), hold(m)].concat())).collect();
    let given = shadows(wanted, &order, &cuts, &spans.open, &had);
    let settled = order.iter().zip(cuts.iter().zip(&given.layers)).all(|(member, (span, shadows))| {
        let held = layer_set(&member.held);
        member.state == PeerState::Ready && span.iter().all(|l| held.contains(&l)) && shadows.is_subset(&held)
    });
    let covered = spans.open.is_empty() && !order.is_empty();

    let mut peers: Vec<TopologyPeer> = Vec::new();
    for ((member, span), mut extra) in order.iter().zip(&cuts).zip(given.layers) {
        if !(settled && covered) {
            extra.extend(layer_set(&hold(member)));
        }
        extra.retain(|l| !span.contains(*l));
        let span = if span.is_empty() { Layers::default() } else { *span };
        peers.push(peer(member, span, ranges(&extra)));
    }
    for member in leaving {
        peers.push(peer(member, Layers::default(), hold(member)));
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut topology = Topology { epoch, model: wanted.model.clone(), layers: wanted.layers(), peers };
    if previous != Some(&topology) {
        topology.epoch += 1;
    }
    topology.validate()?;
    // With a gap, survivors hold more than they are meant to: what they lack room for then says nothing about the plan.
    let without_room = (covered && given.without_room > 0).then_some(Shortage::Shadows(given.without_room));
    Ok(Layout {
        topology,
        reason: spans.reason,
        covered,
        settled,
        shortage: spans.shortage.or_else(|| overfull(wanted, &order, &cuts)).or(without_room),
        gain_percent: spans.gain_percent,
        spare: spans.spare,
    })
}

/// The first span that does not fit.
fn overfull(wanted: &LayoutGoal, members: &[&Member], spans: &[Layers]) -> Option<Shortage> {
    members.iter().zip(spans).find_map(|(member, span)| {
        let need = wanted.need(*span, &BTreeSet::new());
        (need > member.room_bytes).then(|| Shortage::Span {
            pool: member.pool.clone(),
            layers: span.len(),
            need_mib: need.div_ceil(1 << 20),
            has_mib: member.room_bytes >> 20,
            peers: wanted.peers_with(member.room_bytes),
        })
    })
}

fn peer(member: &Member, span: Layers, shadows: Vec<Layers>) -> TopologyPeer {
    TopologyPeer {
        name: member.name.clone(),
        addr: member.addr.clone(),
        pool: member.pool.clone(),
        node: member.node.clone(),
        zone: member.zone.clone(),
        spot: member.spot,
        span,
        shadows,
        state: member.state,
    }
}

#[derive(Default)]
struct Spans<'a> {
    /// Members in pipeline order, each with its span.
    placed: Vec<(&'a Member, Layers)>,
    /// Places without a peer.
    open: Vec<Layers>,
    reason: Reason,
    gain_percent: u32,
    spare: usize,
    /// What another cut, which was due, has no room for.
    shortage: Option<Shortage>,
}

/// Members in pipeline order, each with its span.
#[expect(clippy::too_many_lines, reason = "what may happen to spans, in order of preference")]
fn spans<'a>(
    wanted: &LayoutGoal,
    members: &[&'a Member],
    previous: Option<&Topology>,
    may: May,
) -> Spans<'a> {
    let before = |member: &Member| previous?.peer(&member.name).map(|p| p.span);
    let mut placed: Vec<(&Member, Layers)> =
        members.iter().filter_map(|m| Some((*m, before(m)?))).filter(|(_, span)| !span.is_empty()).collect();
    let mut unplaced: Vec<&Member> =
        members.iter().filter(|m| before(m).is_none_or(Layers::is_empty)).copied().collect();
    let anew = |placed: &[(&'a Member, Layers)], rest: &[&'a Member], reason| {
        let order: Vec<&Member> = placed.iter().map(|(m, _)| *m).chain(rest.iter().copied()).collect();
        cut_anew(wanted, order, reason)
    };
    if placed.is_empty() {
        return anew(&[], &unplaced, Reason::First);
    }
    placed.sort_by_key(|(_, span)| span.start);

    // Replacements take the places of the lost.
    let taken: Vec<Layers> = placed.iter().map(|(_, span)| *span).collect();
    let usual = f64::from(wanted.layers()) / wanted.peers.max(1) as f64;
    let missing = wanted.peers.saturating_sub(placed.len());
    // Layers move only to where they fit; who serves goes on serving.
    let mut shortage = None;
    let mut fitting = |new: Spans<'a>| match new.shortage {
        None => Some(new),
        Some(_) => {
            shortage = new.shortage;
            None
        }
    };
    let mut open = match places(&taken, wanted.layers(), missing, usual) {
        Some(open) => open,
        None => match fitting(anew(&placed, &unplaced, Reason::Resized)) {
            Some(new) => return new,
            None => gaps(&taken, wanted.layers()),
        },
    };
    // First the places with most layers that nobody has loaded: the others run from shadows meanwhile.
    let held = layer_set(&members.iter().flat_map(|m| m.held.iter().copied()).collect::<Vec<_>>());
    open.sort_by_key(|place| {
        (Reverse(place.iter().filter(|layer| !held.contains(layer)).count()), place.start)
    });
    let replaced = open.len().min(unplaced.len());
    placed.extend(unplaced.drain(..replaced).zip(open.drain(..replaced)));
    placed.sort_by_key(|(_, span)| span.start);
    if !open.is_empty()
        && may.fill_gaps
        && let Some(new) = fitting(anew(&placed, &[], Reason::GapFilled))
    {
        return new;
    }

    // More peers than places. A peer that had nothing to do before still has nothing.
    let idle: Vec<&Member> = unplaced.iter().filter(|m| before(m).is_some()).copied().collect();
    let mut fresh = unplaced;
    fresh.retain(|m| before(m).is_none());
    let complete = placed.len() + idle.len() + fresh.len() >= wanted.peers;
    if !fresh.is_empty() && (complete || may.grow) {
        let rest: Vec<&Member> = idle.iter().chain(&fresh).copied().collect();
        if let Some(new) = fitting(anew(&placed, &rest, Reason::Resized)) {
            return new;
        }
    }

    let reason = match (open.is_empty(), replaced) {
        (false, _) => Reason::Waits,
        (true, 0) => Reason::Kept,
        (true, _) => Reason::Replaced,
    };
    let stays = Spans {
        spare: fresh.len(),
        placed: placed.into_iter().chain(idle.into_iter().map(|m| (m, Layers::default()))).collect(),
        open,
        reason,
        gain_percent: 0,
        shortage,
    };
    if stays.open.is_empty() { improved(wanted, stays, may) } else { stays }
}

/// Cuts all layers anew among `order`.
fn cut_anew<'a>(wanted: &LayoutGoal, order: Vec<&'a Member>, reason: Reason) -> Spans<'a> {
    let (spans, fits) = cut(wanted, &order);
    let shortage = if fits { None } else { overfull(wanted, &order, &spans) };
    let mut placed: Vec<(&Member, Layers)> = order.into_iter().zip(spans).collect();
    // Those without layers come last, here as in every later pass, so that shadows stay where they are.
    placed.sort_by_key(|(m, span)| match span.is_empty() {
        false => (false, span.start, None),
        true => (true, 0, Some(m.name.clone())),
    });
    Spans { placed, reason, shortage, ..Spans::default() }
}

/// `stays`, in which every layer has its place; or another cut if one has no room any more, or if another is better by enough and layers may move.
fn improved<'a>(wanted: &LayoutGoal, stays: Spans<'a>, may: May) -> Spans<'a> {
    let (order, now): (Vec<&Member>, Vec<Layers>) = stays.placed.iter().copied().unzip();
    let (better, fits) = cut(wanted, &order);
    if !fits {
        return stays;
    }
    if overfull(wanted, &order, &now).is_some() {
        return cut_anew(wanted, order, Reason::Refitted);
    }
    let gain_percent = gain_percent(&order, &now, &better, moved_percent(wanted, &order, &now, &better));
    if gain_percent > 0 && may.rebalance {
        return cut_anew(wanted, order, Reason::Rebalanced(gain_percent));
    }
    Spans { gain_percent, ..stays }
}

/// The share of the model that `members` with the spans `now` would have to load for the spans `better`, in percent.
fn moved_percent(wanted: &LayoutGoal, members: &[&Member], now: &[Layers], better: &[Layers]) -> u32 {
    let moved = members.iter().zip(now.iter().zip(better)).map(|(member, (now, better))| {
        let held = layer_set(&member.held);
        let new = better.iter().filter(|layer| !held.contains(layer) && !now.contains(*layer));
        new.map(|layer| u128::from(wanted.bytes(layer))).sum::<u128>()
    });
    let all = wanted.layer_bytes.iter().map(|bytes| u128::from(*bytes)).sum::<u128>();
    u32::try_from(moved.sum::<u128>() * 100 / all.max(1)).unwrap_or(100)
}
