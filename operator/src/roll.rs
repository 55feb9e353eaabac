//! Pods that are not as their pools want them any more, because somebody changed the manifest or the image: which of them go next. Pure.
//!
//! They go one after the other, each through the door of a scale-down: a replacement is made and takes over, and only then the older one goes.

use std::collections::{BTreeMap, BTreeSet};

use crate::observe::{PodPhase, WorkerView};
use crate::pools::PoolDesired;
use crate::roster::{Readiness, Roster, is_current};

/// Whether older and newer pods, by name, can work together.
pub type Mix<'a> = &'a dyn Fn(&BTreeSet<&str>, &BTreeSet<&str>) -> bool;

/// What is known of the pods of one role.
#[derive(Clone, Copy)]
pub struct Rolling<'a> {
    /// Pools in order of preference.
    pub pools: &'a [PoolDesired],
    /// All pods.
    pub workers: &'a BTreeMap<String, WorkerView>,
    /// What would become of them if nobody's turn came.
    pub roster: &'a Roster,
    /// Those for which there has been no node for long.
    pub unplaced: &'a BTreeSet<String>,
    /// Does all that it is for.
    pub is_ready: &'a dyn Fn(&str) -> bool,
    /// Older and newer pods, by name, can work together.
    pub mix: Mix<'a>,
}

/// A change that is being carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// Pods that are to be replaced sooner or later.
    pub outdated: BTreeSet<String>,
    /// Those whose turn it is.
    pub going: BTreeSet<String>,
    /// Those of them that stay because nobody has taken their place yet.
    pub awaited: BTreeSet<String>,
}

impl Roll {
    /// Of `rolling`. `may_go`: nothing else comes first.
    #[must_use]
    pub fn of(rolling: Rolling<'_>, may_go: bool) -> Self {
        let (outdated, current): (Vec<&WorkerView>, Vec<&WorkerView>) =
            rolling.present().partition(|w| !is_current(rolling.pools, w));
        let mut roll =
            Self { outdated: outdated.iter().map(|w| w.name.clone()).collect(), ..Self::default() };
        if outdated.is_empty() || !may_go {
            return roll;
        }
        fn names<'w>(workers: &[&'w WorkerView]) -> BTreeSet<&'w str> {
            workers.iter().map(|w| w.name.as_str()).collect()
        }
        roll.going = if (rolling.mix)(&names(&outdated), &names(&current)) {
            rolling.next(&outdated).into_iter().collect()
        } else {
            // All of the new ones beside all of the old ones; those go when these have everything.
            roll.outdated.clone()
        };
        let places: Vec<&str> = rolling
            .pools
            .iter()
            .filter(|pool| !rolling.is_replaced(pool, &roll.going))
            .map(|pool| pool.template.name.as_str())
            .collect();
        let awaited = |name: &&String| places.contains(&rolling.workers[*name].pool.as_str());
        roll.awaited = roll.going.iter().filter(awaited).cloned().collect();
        roll
    }
}

impl<'a> Rolling<'a> {
    /// Pods that are there to stay, as far as nobody is replaced.
    fn present(&self) -> impl Iterator<Item = &'a WorkerView> + use<'a> {
        let (workers, roster) = (self.workers, self.roster);
        workers.values().filter(|w| !w.deleting && !matches!(w.phase, PodPhase::Draining(_))).filter(|w| {
            let readiness = roster.readiness.get(&w.name);
            matches!(readiness, Some(Readiness::Ready | Readiness::Coming | Readiness::Leaving))
        })
    }

    /// Enough others of the pool are ready; or none finds a node, which may need the place of those that go.
    fn is_replaced(&self, pool: &PoolDesired, going: &BTreeSet<String>) -> bool {
        let of_pool = || self.present().filter(|w| w.pool == pool.template.name && !going.contains(&w.name));
        let ready = of_pool().filter(|w| (self.is_ready)(&w.name)).count();
        ready >= pool.peers as usize || of_pool().any(|w| self.unplaced.contains(&w.name))
    }

    /// The first by name. Its turn lasts until it is gone: a pool with more pods than it should have is one in which a replacement is on its way.
    /// A new turn begins only when everybody is ready.
    fn next(&self, outdated: &[&WorkerView]) -> Option<String> {
        let first_of = |pool: &PoolDesired| outdated.iter().find(|w| w.pool == pool.template.name);
        let count = |pool: &PoolDesired| self.present().filter(|w| w.pool == pool.template.name).count();
        let mut pools = self.pools.iter().filter(|pool| first_of(pool).is_some());
        let settled = self.roster.create.is_empty()
            && self.workers.keys().all(|name| {
                self.roster.readiness.get(name) == Some(&Readiness::Ready) && (self.is_ready)(name)
            });
        let pool = pools.clone().find(|pool| count(pool) > pool.peers as usize);
        let pool = pool.or_else(|| pools.next().filter(|_| settled))?;
        first_of(pool).map(|w| w.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pool_desired, worker};

    /// Pods `a`, `b`, `c` of the pool `spot` as they were before the last change, all ready.
    struct World {
        pools: Vec<PoolDesired>,
        workers: BTreeMap<String, WorkerView>,
        readiness: BTreeMap<String, Readiness>,
        unplaced: BTreeSet<String>,
        mix: bool,
    }

    impl World {
        fn new() -> Self {
            let pools = vec![PoolDesired { peers: 3, peers_max: 3, ..pool_desired("spot", true) }];
            let (workers, readiness, unplaced) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
            let mut world = Self { pools, workers, readiness, unplaced, mix: true };
            for name in ["a", "b", "c"] {
                world.join(name, "older", Readiness::Ready);
            }
            world
        }

        fn join(&mut self, name: &str, hash: &str, readiness: Readiness) {
            let pod = WorkerView { hash: hash.into(), ..worker(name, "spot") };
            self.workers.insert(name.into(), pod);
            self.readiness.insert(name.into(), readiness);
        }

        fn leave(&mut self, name: &str) {
            self.workers.remove(name);
            self.readiness.remove(name);
        }

        /// Who goes, and whether it is awaited.
        fn going(&self) -> Vec<(String, bool)> {
            let roster = Roster { readiness: self.readiness.clone(), ..Roster::default() };
            let rolling = Rolling {
                pools: &self.pools,
                workers: &self.workers,
                roster: &roster,
                unplaced: &self.unplaced,
                is_ready: &|name| self.readiness[name] == Readiness::Ready,
                mix: &|_, newer| self.mix || newer.is_empty(),
            };
            let roll = Roll::of(rolling, true);
            assert!(roll.going.is_subset(&roll.outdated) && roll.awaited.is_subset(&roll.going));
            assert!(Roll::of(rolling, false).going.is_empty());
            roll.going.iter().map(|name| (name.clone(), roll.awaited.contains(name))).collect()
        }
    }

    fn turn(name: &str, awaited: bool) -> Vec<(String, bool)> {
        vec![(name.to_owned(), awaited)]
    }

    #[test]
    fn one_after_the_other_and_each_only_when_another_is_ready() {
        let mut world = World::new();
        for (old, new) in [("a", "d"), ("b", "e"), ("c", "f")] {
            assert_eq!(world.going(), turn(old, true));
            // A surplus, for who does not know that it is a replacement.
            world.join(new, "h", Readiness::Leaving);
            assert_eq!(world.going(), turn(old, true));
            world.join(new, "h", Readiness::Ready);
            assert_eq!(world.going(), turn(old, false));
            let pod = world.workers.get_mut(old).unwrap();
            (pod.deleting, pod.phase) = (true, PodPhase::Draining("it is being deleted"));
            world.readiness.insert(old.into(), Readiness::Leaving);
            assert!(world.going().is_empty(), "{old} has not ended yet");
            world.leave(old);
        }
        assert!(world.going().is_empty());
    }

    #[test]
    fn nobody_goes_while_somebody_is_missing_or_reads() {
        let mut world = World::new();
        world.join("c", "older", Readiness::Coming);
        assert!(world.going().is_empty());
        world.join("c", "older", Readiness::Lost("gone".into()));
        assert!(world.going().is_empty());
        world.join("c", "older", Readiness::Ready);
        assert_eq!(world.going(), turn("a", true));
    }

    #[test]
    fn who_finds_no_node_gets_the_place_of_the_one_that_it_replaces() {
        let mut world = World::new();
        world.join("d", "h", Readiness::Coming);
        assert_eq!(world.going(), turn("a", true));
        world.unplaced.insert("d".into());
        assert_eq!(world.going(), turn("a", false));
    }

    #[test]
    fn those_that_cannot_work_together_are_all_replaced_before_the_first_goes() {
        let mut world = World::new();
        world.mix = false;
        assert_eq!(world.going(), turn("a", true));
        for name in ["d", "e", "f"] {
            world.join(name, "h", Readiness::Ready);
            let awaited = name != "f";
            let all: Vec<_> = ["a", "b", "c"].map(|name| (name.to_owned(), awaited)).into();
            assert_eq!(world.going(), all);
        }
    }
}
