//! Which peer of a stage gets the next microbatch: interleaved weighted round robin (SWARM Parallelism, algorithm 1).
//!
//! Every peer has a priority, the time at which it would be free if it got nothing but what it was given so far. The lowest is next,
//! and is charged with the time that the work is expected to take, from a moving average of its throughput.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::speed::Speed;

/// Seconds per row as long as no peer was measured; afterwards a new one is expected to be like the others.
const UNMEASURED: f64 = 1.0;
/// A backward pass takes this many times as long as a forward pass: it computes the forward pass again.
pub const BACKWARD_ROWS: f64 = 2.5;

/// The peers of one stage.
#[derive(Clone, Debug, Default)]
pub struct Wiring {
    peers: BTreeMap<PeerName, Wired>,
    draws: u64,
}

#[derive(Clone, Debug, Default)]
struct Wired {
    priority: f64,
    speed: Speed,
    last_done_ms: u64,
    banned_until_ms: u64,
}

impl Wiring {
    /// Exactly these peers from now on. Newcomers are tried at once.
    pub fn set<'a>(&mut self, peers: impl Iterator<Item = &'a PeerName>) {
        let lowest = self.peers.values().map(|p| p.priority).fold(f64::INFINITY, f64::min);
        let lowest = if lowest.is_finite() { lowest } else { 0.0 };
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let wired = before.remove(peer).unwrap_or_else(|| Wired { priority: lowest, ..Wired::default() });
            self.peers.insert(peer.clone(), wired);
        }
    }

    /// The peer for `rows` of work, charged with it; `None` when there is none that is not banned. Rather none of `avoid`.
    pub fn choose(
        &mut self,
        rows: f64,
        now_ms: u64,
        seed: u64,
        avoid: &BTreeSet<PeerName>,
    ) -> Option<PeerName> {
        self.draws += 1;
        let draws = self.draws;
        let usable = self.peers.iter().filter(|(_, p)| p.banned_until_ms <= now_ms);
        let best = usable.enumerate().min_by(|(i, (n, a)), (j, (m, b))| {
            let tie = |index: &usize| mix(seed ^ draws, *index as u64);
            let avoided = |name: &PeerName| avoid.contains(name);
            let rather = avoided(n).cmp(&avoided(m));
            rather.then(a.priority.total_cmp(&b.priority)).then_with(|| tie(i).cmp(&tie(j)))
        })?;
        let name = best.1.0.clone();
        let known: Vec<f64> = self.peers.values().filter_map(|p| p.speed.seconds_per_row()).collect();
        let usual =
            if known.is_empty() { UNMEASURED } else { known.iter().sum::<f64>() / known.len() as f64 };
        if let Some(wired) = self.peers.get_mut(&name) {
            wired.priority += rows * wired.speed.seconds_per_row().unwrap_or(usual);
        }
        Some(name)
    }

    /// Work is done. The time counts from the later of its start and the peer's last result: with several calls at once this measures
    /// throughput, not latency.
    pub fn done(&mut self, peer: &PeerName, rows: f64, started_ms: u64, now_ms: u64) {
        let Some(wired) = self.peers.get_mut(peer) else { return };
        let from = started_ms.max(wired.last_done_ms);
        let seconds = (now_ms.saturating_sub(from)) as f64 / 1000.0 / rows.max(1e-9);
        wired.speed.measure(seconds);
        wired.last_done_ms = now_ms;
    }

    /// A call failed: not this one for a while.
    pub fn ban(&mut self, peer: &PeerName, until_ms: u64) {
        if let Some(wired) = self.peers.get_mut(peer) {
            wired.banned_until_ms = until_ms;
        }
    }
}

/// A number that depends on all bits of both (the finaliser of splitmix64).
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use dunlin_swarm::PeerName;

    use super::Wiring;

    /// Peers that need the given milliseconds for a row; each works on one row after the other.
    fn shares(speeds: &[(&str, u64)], rows: u32) -> BTreeMap<String, u32> {
        let names: Vec<PeerName> = speeds.iter().map(|(name, _)| PeerName::from(*name)).collect();
        let mut wiring = Wiring::default();
        wiring.set(names.iter());
        let mut free: BTreeMap<PeerName, u64> = names.iter().map(|n| (n.clone(), 0)).collect();
        let mut shares = BTreeMap::new();
        for i in 0..rows {
            // A new row each time that the whole stage could have taken one.
            let now = u64::from(i) * 20;
            let Some(peer) = wiring.choose(1.0, now, 7, &BTreeSet::new()) else { break };
            let ms = speeds.iter().find(|(n, _)| *n == peer.0).map_or(1, |(_, ms)| *ms);
            let start = free[&peer].max(now);
            free.insert(peer.clone(), start + ms);
            wiring.done(&peer, 1.0, now, start + ms);
            *shares.entry(peer.0).or_insert(0) += 1;
        }
        shares
    }

    #[test]
    fn a_peer_at_a_third_of_the_speed_gets_a_third_of_the_work() {
        let shares = shares(&[("fast", 30), ("slow", 90)], 4000);
        let ratio = f64::from(shares["fast"]) / f64::from(shares["slow"]);
        assert!((2.7..3.3).contains(&ratio), "{shares:?}");
    }

    #[test]
    fn banned_peers_get_nothing_until_the_ban_ends_and_newcomers_are_tried_at_once() {
        let (a, b) = (PeerName::from("a"), PeerName::from("b"));
        let mut wiring = Wiring::default();
        let none = BTreeSet::new();
        assert_eq!(wiring.choose(1.0, 0, 1, &none), None);
        wiring.set([&a].into_iter());
        for _ in 0..10 {
            wiring.choose(1.0, 0, 1, &none);
        }
        wiring.ban(&a, 100);
        assert_eq!(wiring.choose(1.0, 99, 1, &none), None);
        assert_eq!(wiring.choose(1.0, 100, 1, &none), Some(a.clone()));
        wiring.set([&a, &b].into_iter());
        let both: Vec<_> = (0..2).filter_map(|_| wiring.choose(1.0, 100, 1, &none)).collect();
        assert!(both.contains(&b), "{both:?}");
        // Those that are to be avoided get work when there is nobody else.
        for _ in 0..10 {
            assert_eq!(wiring.choose(1.0, 100, 1, &BTreeSet::from([a.clone()])), Some(b.clone()));
        }
        let all = BTreeSet::from([a, b]);
        assert!(wiring.choose(1.0, 100, 1, &all).is_some());
    }
}
