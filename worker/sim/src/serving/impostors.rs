//! A peer and a gateway that are on no route. They see each frame before it arrives, and are faster with false ones of the same session.

use dunlin_protocol::{Frame, GatewayId, RowData, Sender, StageEffect, StageNode};

use super::scenario::Outcome;

/// The false copies of `frame`, which a stage must refuse without doing anything.
pub(super) fn disturb(node: &mut StageNode, frame: &Frame, now_ms: u64, outcome: &mut Outcome) {
    let (session, attempt) = match frame {
        Frame::Open(open) => (open.session, open.attempt),
        Frame::Rows { session, attempt, .. }
        | Frame::Room { session, attempt, .. }
        | Frame::Token { session, attempt, .. } => (*session, *attempt),
        _ => return,
    };
    let mut forged = frame.clone();
    match &mut forged {
        Frame::Open(open) => open.attempt += 1,
        Frame::Rows { data, .. } => *data = RowData::new(vec![0.5; data.len()]),
        Frame::Room { until, .. } => *until += 1000,
        Frame::Token { token, .. } => *token += 1,
        _ => {}
    }
    let impostors = [
        Sender::Peer("impostor".into()),
        Sender::Gateway(GatewayId { name: "impostor".to_owned(), incarnation: 1 }),
    ];
    for impostor in impostors {
        for frame in [forged.clone(), Frame::Close { session, attempt }] {
            let mut effects = Vec::new();
            node.frame(&impostor, frame, now_ms, &mut effects);
            for effect in effects {
                match effect {
                    StageEffect::Forbidden { .. } => outcome.refused += 1,
                    other => outcome.violations.push(format!("an impostor had this done: {other:?}")),
                }
            }
        }
    }
}
