//! Replays. The fluid: the same model as the published baselines, what the planner reaches on the recorded trace, and traces it was not made for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;

use dunlin_sim::replay::{Options, Policy, ReplayError, Report, run};

const P3: &str = include_str!("../traces/bamboo-p3.csv");

fn replay(csv: &str, stages: usize, download_s: u64, change: impl FnOnce(&mut Options)) -> Report {
    let mut options = Options { stages, download_ms: download_s * 1000, seeds: 3, ..Options::default() };
    change(&mut options);
    run(&options, csv).unwrap()
}

/// Peers come and go at random, about 20 of them at once.
fn synthetic(seed: u64) -> String {
    let mut random = seed;
    let mut draw = |n: u64| {
        random = dunlin_sim::model::mix(random, seed);
        random % n
    };
    let (mut csv, mut there, mut at_ms) = (String::new(), Vec::new(), 0);
    for i in 0..400 {
        if i >= 20 {
            at_ms += draw(120_000);
        }
        let leaves = i >= 20 && draw(20 + there.len() as u64) < there.len() as u64;
        if leaves {
            let node = there.swap_remove(draw(there.len() as u64) as usize);
            writeln!(csv, "{at_ms},remove,n{node}").unwrap();
        } else {
            there.push(i);
            writeln!(csv, "{at_ms},add,n{i}").unwrap();
        }
    }
    csv
}

#[test]
fn without_rebalancing_it_is_the_model_of_the_baselines() {
    // Measured before with another program, 30 seeds; the mean of 30 has a standard error of 1.2 points.
    for (stages, download_s, share) in [(4, 60, 0.629), (8, 60, 0.335), (8, 180, 0.323)] {
        let report = replay(P3, stages, download_s, |o| (o.policy, o.seeds) = (Policy::None, 30));
        assert!((report.share_of_optimal - share).abs() < 0.02, "{share}: {report:?}");
        assert_eq!((report.switches, report.fetches), (0.0, 0.0));
    }
}

#[test]
fn with_a_notice_almost_all_that_can_be_reached_is_reached() {
    for (stages, download_s, bar) in [(4, 60, 0.981), (8, 60, 0.975), (8, 180, 0.935)] {
        let report = replay(P3, stages, download_s, |_| ());
        assert!(report.share_of_optimal_min >= bar, "{bar}: {report:?}");
        assert!(report.share_of_optimal <= report.share_reachable);
        assert_eq!(report.redone, 0.0);
    }
}

#[test]
fn without_a_notice_work_is_redone_and_shadows_save_the_rest() {
    for (stages, download_s, bar) in [(4, 60, 0.975), (8, 60, 0.96), (8, 180, 0.92)] {
        let report = replay(P3, stages, download_s, |o| o.notice_ms = 0);
        let cold = replay(P3, stages, download_s, |o| (o.notice_ms, o.room) = (0, 0));
        assert!(report.redone > 0.0 && report.share_of_optimal > bar, "{report:?}");
        assert!(report.share_of_optimal > cold.share_of_optimal, "{report:?} {cold:?}");
    }
}

#[test]
fn traces_that_the_planner_was_not_made_for() {
    for seed in 1..=4 {
        let csv = synthetic(seed);
        for (stages, download_s) in [(3, 30), (6, 120)] {
            let none = replay(&csv, stages, download_s, |o| o.policy = Policy::None);
            let with = replay(&csv, stages, download_s, |_| ());
            assert!(with.share_of_optimal <= with.share_reachable);
            assert!(with.share_of_optimal > 0.99 * with.share_reachable, "{seed}: {with:?}");
            assert!(with.share_of_optimal > none.share_of_optimal);
        }
    }
}

#[test]
fn a_small_trace_by_hand() {
    // Two stages. Three of three peers serve, 2 + 1; the lone one goes at 100 s, and the one to spare has its state since 20 s.
    let csv = "0,add,a\n0,add,b\n0,add,c\n100000,remove,b\n200000,add,d\n300000,remove,a\n";
    let report = replay(csv, 2, 20, |_| ());
    // One pipeline is optimal for all 300 s, and there is one all the time, less what the edges cost a peer that hands over.
    assert!(report.share_of_optimal > 0.97, "{report:?}");
    let none = replay(csv, 2, 20, |o| (o.policy, o.seeds) = (Policy::None, 30));
    assert!(none.downtime_s > 30.0 && none.share_of_optimal < 0.9, "{none:?}");
    assert_eq!(report.joins, 1.0);
}

#[test]
fn the_same_options_give_the_same_report() {
    assert_eq!(replay(P3, 4, 60, |_| ()), replay(P3, 4, 60, |_| ()));
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let zero = Options { stages: 0, ..Options::default() };
    assert_eq!(run(&zero, P3), Err(ReplayError::Zero("stages")));
    let error = run(&Options::default(), "0,add,a\n7,add,a\n").unwrap_err();
    assert!(matches!(error, ReplayError::Trace(_)), "{error}");
}

#[test]
fn the_protocol_itself_reaches_on_the_trace_what_is_asked_of_a_swarm() {
    let report = replay(P3, 8, 60, |o| (o.fluid, o.seeds) = (false, 1));
    assert!(report.share_of_optimal >= 0.975 && report.share_of_undisturbed > 0.95, "{report:?}");
    assert!(report.switches > 10.0, "{report:?}");
    assert_eq!((report.redone, report.states_lost), (0.0, 0.0));
}

#[test]
fn the_protocol_on_a_trace_by_hand() {
    // Two stages with three peers each. Two of one stage go, and nobody comes: one of the other stage has to.
    let mut csv: String = (0..6).map(|i| format!("0,add,n{i}\n")).collect();
    csv.push_str("300000,remove,n0\n500000,remove,n2\n600000,remove,n4\n1200000,remove,n1\n");
    let told = replay(&csv, 2, 20, |o| (o.fluid, o.seeds) = (false, 2));
    let untold = replay(&csv, 2, 20, |o| (o.fluid, o.seeds, o.notice_ms) = (false, 2, 0));
    assert!(told.share_of_optimal > 0.95 && told.share_of_undisturbed > 0.8, "{told:?}");
    assert!(told.share_of_undisturbed < 1.0 && told.switches >= 1.0, "{told:?}");
    assert_eq!(told.redone, 0.0);
    assert!(untold.redone > 0.0 && untold.share_of_undisturbed < told.share_of_undisturbed, "{untold:?}");
    assert_eq!(told, replay(&csv, 2, 20, |o| (o.fluid, o.seeds) = (false, 2)));
}
