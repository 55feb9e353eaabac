//! What a step costs on the streams to the conductor.

use dunlin_protocol::training::{
    Contribution, Mate, PeerReport, StateDigest, ToPeer, ToTrainer, TrainerReport,
};
use prost::Message as _;

use super::{Message, ToConductor, ToMember};

/// One step of 64 microbatches over 4 stages with 4 peers each: what goes over all streams, but signs of life.
#[test]
fn a_step_of_sixteen_peers_is_said_in_25_kilobytes() {
    let (stages, peers, microbatches) = (4_u32, 4_u32, 64_u32);
    let (step, attempt) = (1234, (1_790_000_000_000 & ((1 << 43) - 1)) << 20 | 3);
    let of = |stage: u32, peer: u32| Mate {
        name: format!("bible-spot-{stage}{peer}x7k").into(),
        addr: format!("10.1.{stage}.{peer}:7000"),
        host: format!("node-{peer}"),
    };
    let state = StateDigest { fingerprint: 0x0123_4567_89ab_cdef, root: None };
    let (mut up, mut down): (Vec<ToConductor>, Vec<ToMember>) = (Vec::new(), Vec::new());
    for microbatch in 0..microbatches {
        down.push(ToTrainer::Work { step, microbatch, validation: false, attempt }.into());
        for stage in 0..stages {
            let loss = (stage + 1 == stages).then_some(5.123_456_789 * 4096.0);
            let contribution = Contribution { microbatch, loss };
            up.push(PeerReport::Claim { step, microbatch, attempt }.into());
            down.push(ToPeer::Grant { step, microbatch, granted: true }.into());
            up.push(PeerReport::Done { step, contribution, took_us: 61_234 }.into());
        }
        up.push(TrainerReport::Finished { step, microbatch, attempt, loss: None }.into());
    }
    for shard in 0..stages {
        let group: Vec<Mate> = (0..peers).map(|peer| of(shard, peer)).collect();
        for _ in 0..peers {
            let round = attempt + 7;
            down.push(ToPeer::Average { step, shard, round, group: group.clone() }.into());
            let squares = (0..50_u32).map(|t| f64::from(t + 1).sqrt() * 1e-3).collect();
            up.push(PeerReport::Averaged { step, shard, round, squares }.into());
            down.push(ToPeer::Apply { step, scale: 0.731_529, prove: false }.into());
            up.push(PeerReport::Applied { step: step + 1, scale: 0.731_529, state: state.clone() }.into());
        }
    }
    down.push(ToTrainer::Committed { step }.into());
    let messages = up.len() + down.len();
    let bytes: usize = up.into_iter().map(|message| message.to_wire().encoded_len()).sum::<usize>()
        + down.into_iter().map(|message| message.to_wire().encoded_len()).sum::<usize>();
    assert_eq!(messages, 961);
    assert!(bytes <= 25_000, "{bytes} bytes in {messages} messages");
}
