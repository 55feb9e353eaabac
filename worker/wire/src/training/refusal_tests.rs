//! Messages that lack something, have too much or come from other versions are refused by the name of the field.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dunlin_protocol::training::ToPeer;
use prost::Message as _;

use super::check::{MATES_MAX, MessageError, NAME_BYTES_MAX, TEXT_BYTES_MAX};
use super::{Message, ToConductor, ToMember};
use crate::proto::training as wire;

fn heard(body: wire::to_conductor::Body) -> Result<Option<ToConductor>, MessageError> {
    ToConductor::from_wire(body.into())
}

fn reported(what: wire::peer_report::What) -> MessageError {
    heard(wire::to_conductor::Body::Peer(wire::PeerReport { what: Some(what) })).unwrap_err()
}

fn ordered(what: wire::to_peer::What) -> MessageError {
    let order = wire::ToPeer { what: Some(what) };
    ToMember::from_wire(wire::to_member::Body::Peer(order).into()).unwrap_err()
}

#[test]
fn a_message_without_what_it_needs_is_refused_with_the_name_of_the_field() {
    use wire::peer_report::What;
    use wire::to_conductor::Body;
    use wire::to_peer::What as Order;
    let missing = MessageError::Missing;
    let me = Some(wire::Mate { name: "a".to_owned(), ..Default::default() });
    let state = Some(wire::StateDigest::default());
    for (refused, field) in [
        (ToConductor::from_wire(wire::ToConductor::default()).unwrap_err(), "to_conductor.body"),
        (ToMember::from_wire(wire::ToMember::default()).unwrap_err(), "to_member.body"),
        (heard(Body::Peer(wire::PeerReport::default())).unwrap_err(), "peer_report.what"),
        (heard(Body::Trainer(wire::TrainerReport::default())).unwrap_err(), "trainer_report.what"),
        (heard(Body::Hello(wire::Hello::default())).unwrap_err(), "hello.me"),
        (heard(Body::Hello(wire::Hello { me, ..Default::default() })).unwrap_err(), "hello.role"),
        (reported(What::Done(wire::Done::default())), "done.contribution"),
        (reported(What::Applied(wire::Applied { state, ..Default::default() })), "applied.scale"),
        (reported(What::Applied(wire::Applied { scale: Some(1.0), ..Default::default() })), "applied.state"),
        (reported(What::Ready(wire::Ready::default())), "ready.state"),
        (reported(What::FetchFailed(wire::FetchFailed::default())), "fetch_failed.failure"),
        (reported(What::SaveFailed(wire::SaveFailed::default())), "save_failed.failure"),
        (
            reported(What::SaveFailed(wire::SaveFailed { failure: 77, ..Default::default() })),
            "save_failed.failure",
        ),
        (reported(What::Wrong(wire::Wrong::default())), "wrong.mate"),
        (reported(What::Taken(wire::Taken::default())), "taken.from"),
        (ordered(Order::Apply(wire::Apply::default())), "apply.scale"),
        (ordered(Order::Take(wire::Take::default())), "take.from"),
        (
            ordered(Order::Take(wire::Take { from: Some(wire::Mate::default()), ..Default::default() })),
            "mate.name",
        ),
        (ordered(Order::Mates(wire::Mates { stage: vec![String::new()], shared: None })), "mates.stage"),
    ] {
        assert_eq!(refused, missing(field));
    }
    assert_eq!(
        missing("apply.scale").to_string(),
        "apply.scale is missing, or not known here: all processes of a run must be of one image"
    );
}

#[test]
fn what_a_later_build_says_is_not_taken_for_a_sign_of_life() {
    assert_eq!(ToConductor::from_wire(ToConductor::alive()), Ok(None));
    assert_eq!(ToMember::from_wire(ToMember::alive()), Ok(None));
    // Body 15, which there is not.
    let later = wire::ToConductor::decode(&[0x7a, 0][..]).unwrap();
    assert_eq!(ToConductor::from_wire(later), Err(MessageError::Missing("to_conductor.body")));
    // A field that a later build adds to a message of today is passed over.
    let mut order = ToMember::from(ToPeer::Retire).to_wire().encode_to_vec();
    order.extend([0x7a, 3, b'n', b'e', b'w']);
    let order = wire::ToMember::decode(&order[..]).unwrap();
    assert_eq!(ToMember::from_wire(order), Ok(Some(ToPeer::Retire.into())));
}

#[test]
fn who_still_speaks_json_is_told_so() {
    // As earlier builds wrote it.
    let hello = r#"{"me":{"name":"a","addr":"a:1","host":""},"arithmetic":1,"role":{"Peer":{"held":null}}}"#;
    let mut bytes = vec![0x0a, u8::try_from(hello.len()).unwrap()];
    bytes.extend(hello.as_bytes());
    let refused = ToConductor::from_wire(wire::ToConductor::decode(&bytes[..]).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("speaks JSON"), "{refused}");
    let refused = ToMember::from_wire(wire::ToMember::decode(&bytes[..]).unwrap()).unwrap_err();
    assert_eq!(refused, MessageError::Json);
}

#[test]
fn a_message_with_more_than_it_may_have_is_refused_with_the_name_of_the_field() {
    use wire::peer_report::What;
    use wire::to_peer::What as Order;
    let mate = wire::Mate { name: "a".to_owned(), ..Default::default() };
    let long = |max: usize| "x".repeat(max + 1);
    for (refused, message) in [
        (
            ordered(Order::Average(wire::Average { group: vec![mate; MATES_MAX + 1], ..Default::default() })),
            "average.group has 4097, more than 4096",
        ),
        (
            ordered(Order::Mates(wire::Mates { stage: vec!["a".to_owned(); 2], shared: None })),
            "mates.stage has a twice",
        ),
        (
            reported(What::Wrong(wire::Wrong { mate: long(NAME_BYTES_MAX), what: String::new() })),
            "wrong.mate has 1025, more than 1024",
        ),
        (
            reported(What::Corrupt(wire::Corrupt { what: long(TEXT_BYTES_MAX) })),
            "corrupt.what has 1048577, more than 1048576",
        ),
        (
            reported(What::Ready(wire::Ready {
                state: Some(wire::StateDigest { fingerprint: 1, root: Some("g".repeat(64)) }),
                ..Default::default()
            })),
            "state.root is not 64 hexadecimal digits",
        ),
    ] {
        assert_eq!(refused.to_string(), message);
    }
    let averaged = vec![wire::HeldAverage { shard: 7, squares: vec![] }; 2];
    let held = wire::Held { averaged, state: Some(wire::StateDigest::default()), ..Default::default() };
    let hello = wire::Hello {
        me: Some(wire::Mate { name: "a".to_owned(), ..Default::default() }),
        arithmetic: 1,
        role: Some(wire::hello::Role::Peer(wire::PeerRole { held: Some(held) })),
    };
    let refused = heard(wire::to_conductor::Body::Hello(hello)).unwrap_err();
    assert_eq!(refused.to_string(), "held.averaged has shard 7 twice");
}
