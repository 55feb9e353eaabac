//! What must come before what. The simulation finds what comes of another order; these say it.

use std::collections::BTreeSet;

use dunlin_swarm::NumericsClass;

use super::super::fetch::{FetchConfig, FetchEvent, FetchWork, StageSize};
use super::super::ids::AverageId;
use super::super::mates::Mates;
use super::super::message::{Fetch, Mate, PeerReport, StageStart, StateDigest, ToPeer};
use super::super::peer::{Call, CallKind, Job, PeerConfig};
use super::super::serve::{NotGiven, ServeConfig, ServeEffect, Wanted};
use super::{DriverEffect, DriverEvent, PeerDriver};

fn mate(name: &str) -> Mate {
    Mate { name: name.into(), addr: String::new(), host: String::new() }
}

fn handle(driver: &mut PeerDriver, event: DriverEvent) -> Vec<DriverEffect> {
    let mut out = Vec::new();
    driver.handle(0, event, &mut out);
    out
}

fn hear(driver: &mut PeerDriver, message: ToPeer) -> Vec<DriverEffect> {
    handle(driver, DriverEvent::Heard(message))
}

fn newcomer() -> PeerDriver {
    let peer = PeerConfig {
        microbatches: 4,
        delayed_updates: false,
        calls_max: 8,
        arithmetic: NumericsClass::FIRST,
    };
    let fetch = FetchConfig::new(vec![StageSize { chunks: 4, updates_max: 4 }; 2]);
    PeerDriver::new(mate("a"), peer, ServeConfig::default(), fetch)
}

/// Has what `out` wants to be read or installed, and serves stage 0 at step 0.
fn serving() -> PeerDriver {
    let mut driver = newcomer();
    let mut out = hear(&mut driver, ToPeer::Load(StageStart { stage: 0, step: 0, checkpoint: false }));
    for _ in 0..2 {
        let event = out.iter().find_map(|effect| match effect {
            DriverEffect::Fetch(id, FetchWork::Read(_)) => Some(FetchEvent::Came(*id)),
            DriverEffect::Fetch(id, FetchWork::Install(..)) => {
                Some(FetchEvent::At(*id, 0, StateDigest::default()))
            }
            _ => None,
        });
        out = handle(&mut driver, DriverEvent::Fetch(event.unwrap()));
    }
    assert!(driver.serving());
    hear(&mut driver, ToPeer::Mates(Mates { stage: BTreeSet::from(["b".into()]), shared: None }));
    driver
}

fn average() -> ToPeer {
    ToPeer::Average { step: 0, shard: 0, round: 1, group: vec![mate("a"), mate("b")] }
}

/// These come in this order, whatever is between them.
fn in_order(out: &[DriverEffect], which: &[&dyn Fn(&DriverEffect) -> bool]) {
    let mut rest = out.iter();
    for (n, one) in which.iter().enumerate() {
        assert!(rest.any(one), "the effect {n} is not where it should be: {out:?}");
    }
}

fn is_told(effect: &DriverEffect) -> bool {
    matches!(effect, DriverEffect::Tell(_))
}

#[test]
fn the_conductor_hears_of_a_contribution_before_the_trainer_has_its_answer() {
    let mut driver = serving();
    let call = Call { stage: 0, step: 0, microbatch: 0, attempt: 0, kind: CallKind::Backward };
    handle(&mut driver, DriverEvent::Called(7, call));
    hear(&mut driver, ToPeer::Grant { step: 0, microbatch: 0, granted: true });
    let out = handle(&mut driver, DriverEvent::Computed { request: 7, outcome: Ok(None), took_us: 1 });
    in_order(&out, &[&is_told, &|effect| *effect == DriverEffect::Reply(7)]);
}

#[test]
fn a_mate_gets_the_sums_that_it_was_told_to_take_and_no_others() {
    let mut driver = serving();
    let mut asked = 0;
    let mut ask = |driver: &mut PeerDriver, microbatches: &[u32]| {
        asked += 1;
        let wanted = Wanted::AllSums(0, microbatches.iter().copied().collect());
        let out = handle(driver, DriverEvent::Asked { ask: asked, by: "b".into(), stage: 0, wanted });
        match &out[..] {
            [DriverEffect::Serve(ServeEffect::Give(..))] => Ok(()),
            [DriverEffect::Serve(ServeEffect::Refuse(_, why))] => Err(why.clone()),
            _ => panic!("{out:?}"),
        }
    };
    let call = Call { stage: 0, step: 0, microbatch: 1, attempt: 0, kind: CallKind::Backward };
    handle(&mut driver, DriverEvent::Called(7, call));
    hear(&mut driver, ToPeer::Grant { step: 0, microbatch: 1, granted: true });
    assert_eq!(ask(&mut driver, &[1]), Err(NotGiven::OtherSums), "it is being added");
    handle(&mut driver, DriverEvent::Computed { request: 7, outcome: Ok(None), took_us: 1 });
    assert_eq!(ask(&mut driver, &[1]), Ok(()));
    assert_eq!(ask(&mut driver, &[]), Ok(()), "whatever there is");
    assert_eq!(ask(&mut driver, &[0, 1]), Err(NotGiven::OtherSums));
    // It was away for a moment, and begins with nothing.
    hear(&mut driver, ToPeer::Clear { step: 0, attempt: 0 });
    assert_eq!(ask(&mut driver, &[1]), Err(NotGiven::OtherSums));
}

#[test]
fn a_member_fixes_its_own_share_before_it_gives_to_others() {
    let mut driver = serving();
    let id = AverageId { step: 0, shard: 0, round: 1 };
    let wanted = Wanted::Sums(id, 0..2);
    assert!(handle(&mut driver, DriverEvent::Asked { ask: 1, by: "b".into(), stage: 0, wanted }).is_empty());
    let out = hear(&mut driver, average());
    in_order(
        &out,
        &[&|effect| matches!(effect, DriverEffect::Begin(..)), &|effect| {
            matches!(effect, DriverEffect::Serve(ServeEffect::Give(1, _)))
        }],
    );
}

#[test]
fn averages_fail_before_their_sums_change() {
    let changes = [
        ToPeer::Apply { step: 0, scale: 1.0, prove: false },
        ToPeer::Clear { step: 0, attempt: 1 },
        ToPeer::Load(StageStart { stage: 0, step: 0, checkpoint: false }),
    ];
    for change in changes {
        let mut driver = serving();
        hear(&mut driver, average());
        let out = hear(&mut driver, change);
        in_order(
            &out,
            &[&|effect| *effect == DriverEffect::CancelAverages, &|effect| {
                matches!(effect, DriverEffect::Run(Job::Apply { .. } | Job::Clear))
            }],
        );
    }
}

#[test]
fn nothing_of_a_state_is_given_when_the_next_is_about_to_come() {
    let mut driver = serving();
    let by = "stranger".into();
    handle(&mut driver, DriverEvent::Asked { ask: 1, by, stage: 0, wanted: Wanted::Update(0) });
    let fetch = Fetch { stage: 1, step: 3, mates: vec![mate("c")], whole: false };
    hear(&mut driver, average());
    let id = AverageId { step: 0, shard: 0, round: 1 };
    assert!(driver.wants(id));
    let out = hear(&mut driver, ToPeer::Fetch(fetch));
    assert!(!driver.wants(id), "it may be complete and on its way from the engine");
    in_order(
        &out,
        &[
            &|effect| *effect == DriverEffect::Run(Job::Clear),
            &|effect| *effect == DriverEffect::DropAverages,
            &|effect| matches!(effect, DriverEffect::Serve(ServeEffect::Refuse(1, _))),
            &|effect| matches!(effect, DriverEffect::Fetch(_, FetchWork::PullState(..))),
        ],
    );
}

#[test]
fn who_cannot_trust_its_memory_gives_nothing_more_and_then_says_so_once() {
    let mut driver = serving();
    let by = "stranger".into();
    handle(&mut driver, DriverEvent::Asked { ask: 1, by, stage: 0, wanted: Wanted::Update(0) });
    let out = handle(&mut driver, DriverEvent::Corrupt("a bit".to_owned()));
    in_order(
        &out,
        &[
            &|effect| *effect == DriverEffect::DropAverages,
            &|effect| matches!(effect, DriverEffect::Serve(ServeEffect::Refuse(1, _))),
            &|effect| matches!(effect, DriverEffect::Tell(PeerReport::Corrupt { .. })),
        ],
    );
    assert!(handle(&mut driver, DriverEvent::Corrupt("a bit".to_owned())).is_empty());
}
