#![allow(clippy::unwrap_used, reason = "a test may panic")]

use prost::Message;

use super::{PublicKey, Signable, SignatureError, Signed, SigningIdentity};
use crate::identity::{Caller, Role};
use crate::proto;
use crate::proto::training::{Applied, StateDigest};
use crate::{Authority, TlsFiles, Validity};

/// Another kind with the same fields.
#[derive(Clone, PartialEq, prost::Message)]
struct Other {
    #[prost(uint64, tag = "1")]
    step: u64,
}

impl Signable for Other {
    const KIND: &'static str = "other";
    const VERSION: u32 = 1;
}

/// The same kind, of another version.
#[derive(Clone, PartialEq, prost::Message)]
struct Later {
    #[prost(uint64, tag = "1")]
    step: u64,
}

impl Signable for Later {
    const KIND: &'static str = Applied::KIND;
    const VERSION: u32 = 2;
}

fn applied() -> Applied {
    let state = Some(StateDigest { fingerprint: u64::MAX, root: Some("0".repeat(64)) });
    Applied { step: 7, scale: Some(f32::from_bits(0x7fc0_0001)), state }
}

fn files(authority: &Authority) -> TlsFiles {
    authority.issue(Role::Peer, &["peer-1".to_owned()], Validity::Authority).unwrap()
}

fn key_of(files: &TlsFiles) -> PublicKey {
    Caller::from_certificate(&files.certificate_der().unwrap()).unwrap().public_key()
}

fn relayed<T: Signable>(signed: &Signed<T>) -> proto::Signed {
    proto::Signed::decode(&signed.to_wire().encode_to_vec()[..]).unwrap()
}

#[test]
fn a_statement_counts_with_the_key_of_a_certificate_however_often_it_is_passed_on_and_renewed() {
    let authority = Authority::generate("test").unwrap();
    let own = files(&authority);
    let signer = SigningIdentity::new(&own.key).unwrap();
    assert_eq!(*signer.public_key(), key_of(&own));
    let signed = signer.sign("ns/swarm", &applied()).unwrap();
    let renewed = authority.renew(&own.key, Role::Peer, &["peer-1".to_owned()], Validity::Authority).unwrap();
    let mut wire = signed.to_wire();
    for _ in 0..3 {
        let again = Signed::<Applied>::from_wire(wire).unwrap();
        let says = again.verify("ns/swarm", &key_of(&renewed), "peer-1").unwrap();
        assert_eq!(says.encode_to_vec(), applied().encode_to_vec());
        wire = relayed(&again);
    }
    assert_eq!(wire.encode_to_vec(), signed.to_wire().encode_to_vec());
}

#[test]
fn what_is_decoded_is_what_was_signed_also_if_nobody_here_would_write_it_so() {
    let own = files(&Authority::generate("test").unwrap());
    let signer = SigningIdentity::new(&own.key).unwrap();
    /// As a later build writes it: a field that is not known here, in front of the others.
    #[derive(Clone, PartialEq, prost::Message)]
    struct AppliedLater {
        #[prost(uint64, tag = "1")]
        step: u64,
        #[prost(string, tag = "900")]
        new: String,
    }
    impl Signable for AppliedLater {
        const KIND: &'static str = Applied::KIND;
        const VERSION: u32 = Applied::VERSION;
    }
    let later = AppliedLater { step: 9, new: "more".to_owned() };
    let wire = relayed(&signer.sign("s", &later).unwrap());
    let heard = Signed::<Applied>::from_wire(wire).unwrap();
    assert_eq!(heard.verify("s", signer.public_key(), "a").unwrap().step, 9);
    // The field that is not known here goes on, and the next one who knows it finds it.
    let onward = Signed::<AppliedLater>::from_wire(relayed(&heard)).unwrap();
    assert_eq!(onward.verify("s", signer.public_key(), "a").unwrap(), later);
}

#[test]
fn a_signature_counts_for_one_swarm_one_kind_one_version_and_one_holder() {
    let authority = Authority::generate("test").unwrap();
    let (own, other) = (files(&authority), files(&authority));
    let signer = SigningIdentity::new(&own.key).unwrap();
    let body = Other { step: 7 };
    let signed = signer.sign("swarm", &body).unwrap();
    let key = signer.public_key();
    assert_eq!(signed.verify("swarm", key, "a"), Ok(body));
    let wrong = |kind, version| SignatureError::Wrong { kind, version };
    assert_eq!(signed.verify("swar", key, "a").unwrap_err(), wrong("other", 1));
    let as_applied = Signed::<Applied>::from_wire(signed.to_wire()).unwrap();
    assert_eq!(as_applied.verify("swarm", key, "a").unwrap_err(), wrong(Applied::KIND, 1));
    let now = signer.sign("swarm", &Applied { step: 7, ..Applied::default() }).unwrap();
    let as_later = Signed::<Later>::from_wire(now.to_wire()).unwrap();
    assert_eq!(as_later.verify("swarm", key, "a").unwrap_err(), wrong(Applied::KIND, 2));
    let refused = now.verify("swarm", &key_of(&other), "peer-2").unwrap_err();
    assert_eq!(refused.to_string(), "it is signed with another key than that of peer-2");
    // Whoever says that another key signed it has to show a signature of that one.
    let mut stolen = now.to_wire();
    stolen.key = key_of(&other).as_der().to_vec().into();
    let stolen = Signed::<Applied>::from_wire(stolen).unwrap();
    assert_eq!(stolen.verify("swarm", &key_of(&other), "peer-2").unwrap_err(), wrong(Applied::KIND, 1));
    // A caller without a certificate has no key that verifies anything.
    let nobody = Caller::unproven(Role::Peer, "a").public_key();
    assert_eq!(now.verify("swarm", &nobody, "a").unwrap_err(), SignatureError::OtherKey("a".to_owned()));
}

#[test]
fn no_bit_of_it_can_be_changed() {
    let own = files(&Authority::generate("test").unwrap());
    let signer = SigningIdentity::new(&own.key).unwrap();
    let wire = signer.sign("swarm", &applied()).unwrap().to_wire();
    let counts = |wire: proto::Signed| {
        Signed::<Applied>::from_wire(wire).and_then(|s| s.verify("swarm", signer.public_key(), "a")).is_ok()
    };
    assert!(counts(wire.clone()));
    type Part = fn(&mut proto::Signed) -> &mut bytes::Bytes;
    let parts: [Part; 3] = [|w| &mut w.body, |w| &mut w.key, |w| &mut w.signature];
    for part in parts {
        for bit in 0..part(&mut wire.clone()).len() * 8 {
            let mut changed = wire.clone();
            let mut bytes = part(&mut changed).to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            *part(&mut changed) = bytes.into();
            assert!(!counts(changed), "bit {bit}");
        }
    }
}

#[test]
fn what_cannot_be_a_statement_is_refused_before_anything_is_computed() {
    let own = files(&Authority::generate("test").unwrap());
    let signer = SigningIdentity::new(&own.key).unwrap();
    let wire = signer.sign("swarm", &applied()).unwrap().to_wire();
    let refused = |change: &dyn Fn(&mut proto::Signed)| {
        let mut wire = wire.clone();
        change(&mut wire);
        Signed::<Applied>::from_wire(wire).unwrap_err()
    };
    assert_eq!(refused(&|w| w.key = bytes::Bytes::new()), SignatureError::Malformed("a key"));
    assert_eq!(refused(&|w| w.key = vec![0; 257].into()), SignatureError::Malformed("a key"));
    assert_eq!(refused(&|w| w.signature = bytes::Bytes::new()), SignatureError::Malformed("a signature"));
    assert_eq!(refused(&|w| w.signature = vec![0; 257].into()), SignatureError::Malformed("a signature"));
    assert_eq!(refused(&|w| w.body = vec![0; (1 << 20) + 1].into()), SignatureError::Malformed("a body"));
    assert!(matches!(SigningIdentity::new("no key"), Err(SignatureError::Sign(_))));
    // Signed, and no such statement: a number where its state should be.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Nonsense {
        #[prost(uint64, tag = "3")]
        state: u64,
    }
    impl Signable for Nonsense {
        const KIND: &'static str = Applied::KIND;
        const VERSION: u32 = Applied::VERSION;
    }
    let nonsense = signer.sign("swarm", &Nonsense { state: 1 }).unwrap();
    let nonsense = Signed::<Applied>::from_wire(nonsense.to_wire()).unwrap();
    let refused = nonsense.verify("swarm", signer.public_key(), "a").unwrap_err();
    assert!(matches!(refused, SignatureError::NoStatement { kind: "training.Applied", .. }), "{refused:?}");
}
