//! Every message comes back as it was.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::{
    Contribution, Fetch, FetchFailure, Held, HeldSums, Hello, Mate, PeerReport, SaveFailure, StageStart,
    StateDigest, ToPeer, ToTrainer, TrainerReport, TrainingRole,
};
use dunlin_swarm::{NumericsClass, PeerName};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use super::check::{MATES_MAX, NAME_BYTES_MAX, OPEN_STEPS_MAX, TEXT_BYTES_MAX};
use super::{Message, ToConductor, ToMember};
use dunlin_swarm::limits::MESSAGE_BYTES_MAX;

/// Numbers with their limits.
fn long() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()]
}

fn short() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(u32::MAX), any::<u32>()]
}

/// Every float there is, with those that are no numbers.
fn double() -> impl Strategy<Value = f64> {
    let odd =
        [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE / 2.0, f64::MAX];
    prop_oneof![prop::sample::select(odd.to_vec()), any::<u64>().prop_map(f64::from_bits), -1e9..1e9]
}

fn float() -> impl Strategy<Value = f32> {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MIN_POSITIVE / 2.0, f32::MAX];
    prop_oneof![prop::sample::select(odd.to_vec()), any::<u32>().prop_map(f32::from_bits), 0.0..1f32]
}

fn name() -> impl Strategy<Value = PeerName> {
    prop_oneof![4 => "[a-zü-]{1,9}", 1 => Just("x".repeat(NAME_BYTES_MAX))].prop_map(PeerName)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => ".{0,20}", 1 => Just("w".repeat(TEXT_BYTES_MAX))]
}

prop_compose! {
    fn mate()(name in name(), addr in ".{0,9}", host in ".{0,9}") -> Mate {
        Mate { name, addr, host }
    }
}

prop_compose! {
    fn contribution()(microbatch in short(), loss in option::of(double())) -> Contribution {
        Contribution { microbatch, loss }
    }
}

prop_compose! {
    fn state()(fingerprint in long(), root in option::of("[0-9a-f]{64}")) -> StateDigest {
        StateDigest { fingerprint, root }
    }
}

prop_compose! {
    fn sums()(done in vec(contribution(), 0..4), adding in vec(short(), 0..4)) -> HeldSums {
        HeldSums { done, adding }
    }
}

prop_compose! {
    fn held()(
        (stage, step, attempt, copied) in (short(), long(), long(), any::<bool>()),
        sums in prop_oneof![vec(sums(), 0..3), Just(vec![HeldSums::default(); OPEN_STEPS_MAX])],
        averaged in btree_map(short(), vec(double(), 0..4), 0..3),
        scale in option::of(float()),
        state in state(),
    ) -> Held {
        Held { stage, step, sums, averaged, scale, state, copied, attempt }
    }
}

fn hello() -> impl Strategy<Value = Hello> {
    let peer = option::of(held()).prop_map(|held| TrainingRole::Peer { held });
    let role = prop_oneof![peer, "[0-9a-f]{0,64}".prop_map(|data| TrainingRole::Trainer { data })];
    let arithmetic = short().prop_map(NumericsClass::from_number);
    (mate(), arithmetic, role).prop_map(|(me, arithmetic, role)| Hello { me, arithmetic, role })
}

fn peer_report() -> impl Strategy<Value = PeerReport> {
    let failure = prop_oneof![Just(FetchFailure::Passing), long().prop_map(FetchFailure::Damaged)];
    let not_saved = prop_oneof![Just(SaveFailure::Destination), Just(SaveFailure::OtherStep)];
    prop_oneof![
        (long(), short(), long()).prop_map(|(step, microbatch, attempt)| PeerReport::Claim {
            step,
            microbatch,
            attempt
        }),
        (long(), short()).prop_map(|(step, microbatch)| PeerReport::Released { step, microbatch }),
        (long(), contribution(), long()).prop_map(|(step, contribution, took_us)| PeerReport::Done {
            step,
            contribution,
            took_us
        }),
        text().prop_map(|what| PeerReport::Corrupt { what }),
        (long(), short(), long(), vec(double(), 0..9))
            .prop_map(|(step, shard, round, squares)| PeerReport::Averaged { step, shard, round, squares }),
        (long(), short(), long(), text(), option::of(name())).prop_map(|(step, shard, round, why, mate)| {
            PeerReport::AverageFailed { step, shard, round, why, mate }
        }),
        (long(), float(), state()).prop_map(|(step, scale, state)| PeerReport::Applied {
            step,
            scale,
            state
        }),
        (short(), long(), state()).prop_map(|(stage, step, state)| PeerReport::Ready { stage, step, state }),
        (short(), failure, text()).prop_map(|(stage, failure, why)| PeerReport::FetchFailed {
            stage,
            failure,
            why
        }),
        (name(), text()).prop_map(|(mate, what)| PeerReport::Wrong { mate, what }),
        (long(), name()).prop_map(|(step, from)| PeerReport::Taken { step, from }),
        (long(), name()).prop_map(|(step, from)| PeerReport::TakeFailed { step, from }),
        long().prop_map(|within_ms| PeerReport::Leaving { within_ms }),
        (long(), text()).prop_map(|(step, record)| PeerReport::Saved { step, record }),
        (long(), not_saved, text()).prop_map(|(step, failure, why)| PeerReport::SaveFailed {
            step,
            failure,
            why
        }),
    ]
}

fn trainer_report() -> impl Strategy<Value = TrainerReport> {
    prop_oneof![
        (long(), short(), long(), option::of(double())).prop_map(|(step, microbatch, attempt, loss)| {
            TrainerReport::Finished { step, microbatch, attempt, loss }
        }),
        (long(), short(), long(), name(), name(), text()).prop_map(
            |(step, microbatch, attempt, peer, by, what)| {
                TrainerReport::Contradicted { step, microbatch, attempt, peer, by, what }
            }
        ),
        (long(), short(), long(), vec(name(), 0..4), text()).prop_map(
            |(step, microbatch, attempt, peers, what)| {
                TrainerReport::Failed { step, microbatch, attempt, peers, what }
            }
        ),
    ]
}

fn to_peer() -> impl Strategy<Value = ToPeer> {
    let shared = option::of((short(), btree_set(name(), 0..4)));
    let group =
        prop_oneof![4 => vec(mate(), 0..4).boxed(), 1 => mate().prop_map(|m| vec![m; MATES_MAX]).boxed()];
    prop_oneof![
        (long(), short(), any::<bool>()).prop_map(|(step, microbatch, granted)| ToPeer::Grant {
            step,
            microbatch,
            granted
        }),
        (short(), long(), any::<bool>()).prop_map(|(stage, step, checkpoint)| ToPeer::Load(StageStart {
            stage,
            step,
            checkpoint
        })),
        (short(), long(), vec(mate(), 0..4), any::<bool>())
            .prop_map(|(stage, step, mates, whole)| ToPeer::Fetch(Fetch { stage, step, mates, whole })),
        (long(), short(), long(), group).prop_map(|(step, shard, round, group)| ToPeer::Average {
            step,
            shard,
            round,
            group
        }),
        (long(), float(), any::<bool>()).prop_map(|(step, scale, prove)| ToPeer::Apply {
            step,
            scale,
            prove
        }),
        (long(), mate(), vec(contribution(), 0..9)).prop_map(|(step, from, contributions)| ToPeer::Take {
            step,
            from,
            contributions
        }),
        (long(), any::<bool>()).prop_map(|(step, check)| ToPeer::Save { step, check }),
        (long(), long()).prop_map(|(step, attempt)| ToPeer::Clear { step, attempt }),
        text().prop_map(|why| ToPeer::Expelled { why }),
        (btree_set(name(), 0..4), shared).prop_map(|(stage, shared)| ToPeer::Mates(Mates { stage, shared })),
        Just(ToPeer::Retire),
    ]
}

fn to_trainer() -> impl Strategy<Value = ToTrainer> {
    prop_oneof![
        (vec(vec(mate(), 0..4), 0..4), vec(name(), 0..4))
            .prop_map(|(stages, closing)| ToTrainer::Roster { stages, closing }),
        (long(), short(), any::<bool>(), long()).prop_map(|(step, microbatch, validation, attempt)| {
            ToTrainer::Work { step, microbatch, validation, attempt }
        }),
        long().prop_map(|step| ToTrainer::Committed { step }),
        text().prop_map(|why| ToTrainer::Refused { why }),
        Just(ToTrainer::Anew),
        Just(ToTrainer::Retire),
    ]
}

/// Through bytes and back; equal, and where there are floats that equal nothing, of the same bits.
fn comes_back<M: Message + Clone + PartialEq + std::fmt::Debug>(message: M) -> Result<(), TestCaseError> {
    let bytes = message.clone().to_wire().encode_to_vec();
    prop_assert!(bytes.len() <= MESSAGE_BYTES_MAX);
    let back = M::from_wire(M::Wire::decode(&bytes[..]).unwrap()).unwrap().unwrap();
    if message == message.clone() {
        prop_assert_eq!(&back, &message);
    } else {
        // `Debug` tells all but the bits of floats that are no numbers, and the message has those.
        prop_assert_eq!(format!("{back:?}"), format!("{message:?}"));
    }
    prop_assert_eq!(back.to_wire().encode_to_vec(), bytes);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_hello_comes_back_as_it_was(hello in hello()) {
        comes_back(ToConductor::from(hello))?;
    }

    #[test]
    fn every_report_of_a_peer_comes_back_as_it_was(reports in vec(peer_report(), 24)) {
        for report in reports {
            comes_back(ToConductor::from(report))?;
        }
    }

    #[test]
    fn every_report_of_a_trainer_comes_back_as_it_was(reports in vec(trainer_report(), 6)) {
        for report in reports {
            comes_back(ToConductor::from(report))?;
        }
    }

    #[test]
    fn every_order_to_a_peer_comes_back_as_it_was(orders in vec(to_peer(), 16)) {
        for order in orders {
            comes_back(ToMember::from(order))?;
        }
    }

    #[test]
    fn every_order_to_a_trainer_comes_back_as_it_was(orders in vec(to_trainer(), 8)) {
        for order in orders {
            comes_back(ToMember::from(order))?;
        }
    }
}

/// JSON has no such numbers: a loss went missing, and with sums of squares the stream ended before anybody could say that the run diverges.
#[test]
fn what_is_no_number_arrives_with_its_bits() {
    let nan = f64::from_bits(0x7ff0_dead_beef_0001);
    let done = PeerReport::Done {
        step: 1,
        contribution: Contribution { microbatch: 2, loss: Some(nan) },
        took_us: 3,
    };
    let averaged = PeerReport::Averaged { step: 1, shard: 2, round: 3, squares: vec![nan, f64::INFINITY] };
    let arrives = |report: PeerReport| ToConductor::from_wire(ToConductor::from(report).to_wire()).unwrap();
    let Some(ToConductor::Peer(PeerReport::Done { contribution, .. })) = arrives(done) else { panic!() };
    assert_eq!(contribution.loss.map(f64::to_bits), Some(nan.to_bits()));
    let Some(ToConductor::Peer(PeerReport::Averaged { squares, .. })) = arrives(averaged) else { panic!() };
    let bits: Vec<u64> = squares.iter().map(|square| square.to_bits()).collect();
    assert_eq!(bits, [nan.to_bits(), f64::INFINITY.to_bits()]);
}
