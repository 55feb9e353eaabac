//! Which peers are so slow that a way around them is better.
//!
//! A peer is compared with what the other holders of its layers would need for a token: the time of a row through its span, as it measures
//! it itself, plus the round trip of a ping, which shows what it cannot see (a process that is stopped for a while measures nothing
//! meanwhile). One bad moment is not enough, and neither is one good one: what was slow is left alone for a time that doubles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dunlin_swarm::{Load, Loads, PeerName, Topology};

/// So many times as long as others would need is slow...
const SLOW_FACTOR: u64 = 4;
/// ...if it costs more than this, in microseconds a token...
const SLOW_US_MIN: u64 = 10_000;
/// ...without a break for this long.
const SUSPECT_MS: u64 = 1500;
/// First and longest time for which a slow peer is left alone.
const HOLD_MS: (u64, u64) = (15_000, 300_000);
/// A peer that was not slow for this long after its hold begins again with the first.
const FORGIVEN_MS: u64 = 60_000;
/// Round trips of pings count for this long.
const ROUND_TRIPS_MS: u64 = 2000;
/// Of that age at most this many.
const ROUND_TRIPS_MAX: usize = 64;

/// How every peer has been doing lately.
#[derive(Default)]
pub(super) struct Pace {
    peers: BTreeMap<PeerName, Peer>,
}

#[derive(Default)]
struct Peer {
    /// (when, microseconds), oldest first.
    round_trips: VecDeque<(u64, u64)>,
    /// It looks slow since then.
    suspect_ms: Option<u64>,
    /// It is left alone until then.
    hold_until_ms: Option<u64>,
    /// Holds in a row.
    holds: u32,
    /// When it last looked slow, or its last hold ended.
    slow_ms: u64,
}

/// What a token costs on a peer's span and would cost elsewhere, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub own_us: u64,
    pub elsewhere_us: u64,
}

impl Pace {
    /// A ping came back.
    pub fn round_trip(&mut self, peer: &PeerName, micros: u64, now_ms: u64) {
        let trips = &mut self.peers.entry(peer.clone()).or_default().round_trips;
        trips.push_back((now_ms, micros));
        while trips.len() > ROUND_TRIPS_MAX
            || trips.front().is_some_and(|(at, _)| at + ROUND_TRIPS_MS < now_ms)
        {
            trips.pop_front();
        }
    }

    /// A peer is gone; names are not used twice.
    pub fn forget(&mut self, peer: &PeerName) {
        self.peers.remove(peer);
    }

    /// Peers that are to be left alone.
    pub fn slow(&self) -> BTreeSet<PeerName> {
        self.peers.iter().filter(|(_, p)| p.hold_until_ms.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Looks at every peer anew. `there` are the peers that can be used.
    pub fn look(&mut self, topology: &Topology, loads: &Loads, there: &BTreeSet<PeerName>, now_ms: u64) {
        let slow = self.slow();
        let costs: Vec<(PeerName, Option<Cost>)> = topology
            .peers
            .iter()
            .filter(|p| there.contains(&p.name))
            .map(|p| (p.name.clone(), self.cost(&p.name, topology, loads, there, &slow)))
            .collect();
        for (name, cost) in costs {
            let peer = self.peers.entry(name).or_default();
            let looks_slow = cost.is_some_and(|c| {
                c.own_us >= c.elsewhere_us.saturating_mul(SLOW_FACTOR)
                    && c.own_us - c.elsewhere_us >= SLOW_US_MIN
            });
            peer.look(looks_slow, now_ms);
        }
    }

    /// What a token costs on this peer and would cost elsewhere; unknown when nobody else has its layers, or somebody has not measured itself.
    pub fn cost(
        &self,
        name: &PeerName,
        topology: &Topology,
        loads: &Loads,
        there: &BTreeSet<PeerName>,
        slow: &BTreeSet<PeerName>,
    ) -> Option<Cost> {
        let span = topology.peer(name)?.span;
        let own = loads.get(name)?;
        let is_choice = |other: &PeerName, load: &Load| {
            other != name
                && there.contains(other)
                && !slow.contains(other)
                && !load.draining
                && load.arithmetic == own.arithmetic
        };
        let others: Vec<(&PeerName, &Load)> = loads.iter().filter(|(n, load)| is_choice(n, load)).collect();
        let (mut elsewhere_us, mut trip_us) = (0, 0);
        for layer in span.iter() {
            let holders = others.iter().filter(|(_, load)| load.held.iter().any(|held| held.contains(layer)));
            let (us, holder) = holders.filter_map(|(n, load)| Some((row_us(load)?, *n))).min()?;
            elsewhere_us += us;
            trip_us = trip_us.max(self.round_trip_us(holder));
        }
        let own_us = row_us(own)? * u64::from(span.len()) + self.round_trip_us(name);
        Some(Cost { own_us, elsewhere_us: elsewhere_us + trip_us })
    }

    /// The median of late.
    fn round_trip_us(&self, name: &PeerName) -> u64 {
        let Some(peer) = self.peers.get(name).filter(|p| !p.round_trips.is_empty()) else { return 0 };
        let mut trips: Vec<u64> = peer.round_trips.iter().map(|(_, us)| *us).collect();
        trips.sort_unstable();
        trips[trips.len() / 2]
    }
}

impl Peer {
    fn look(&mut self, looks_slow: bool, now_ms: u64) {
        if let Some(until_ms) = self.hold_until_ms {
            if now_ms < until_ms {
                return;
            }
            // Nobody uses it, so it has little to show: the next sessions try it.
            self.hold_until_ms = None;
            self.suspect_ms = None;
            self.slow_ms = now_ms;
        }
        if !looks_slow {
            self.suspect_ms = None;
            if now_ms - self.slow_ms >= FORGIVEN_MS {
                self.holds = 0;
            }
            return;
        }
        self.slow_ms = now_ms;
        let since_ms = *self.suspect_ms.get_or_insert(now_ms);
        if now_ms - since_ms >= SUSPECT_MS {
            let hold_ms = (HOLD_MS.0 << self.holds.min(16)).min(HOLD_MS.1);
            self.holds += 1;
            self.hold_until_ms = Some(now_ms + hold_ms);
        }
    }
}

/// Time of a row through one layer, in microseconds.
fn row_us(load: &Load) -> Option<u64> {
    let rate = load.rows_per_s_per_layer;
    (rate > 0.0).then(|| (1e6 / rate) as u64)
}
