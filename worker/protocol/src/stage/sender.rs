//! Who sends frames to a stage, and which.

use std::fmt;

use dunlin_swarm::PeerName;

use crate::frame::{Frame, GatewayId};

/// The other end of a stream that frames arrive on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// It owns sessions.
    Gateway(GatewayId),
    /// It executes layers.
    Peer(PeerName),
}

impl Sender {
    /// Whether it may send `frame`, as far as the frame alone tells. A gateway opens its own sessions at their first hop, and closes them; a
    /// peer passes sessions on to the hop behind its own, with rows and tokens.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn may_send(&self, frame: &Frame) -> Result<(), &'static str> {
        let rule = match (self, frame) {
            (_, Frame::Ping { .. })
            | (Self::Peer(_), Frame::Rows { .. } | Frame::Room { .. } | Frame::Token { .. })
            | (Self::Gateway(_), Frame::Close { .. }) => return Ok(()),
            (Self::Gateway(id), Frame::Open(open)) if open.index == 0 && open.gateway == *id => return Ok(()),
            (Self::Peer(name), Frame::Open(open)) => {
                let before = open.index.checked_sub(1).and_then(|before| open.route.get(before as usize));
                if before.is_some_and(|hop| hop.peer == *name) {
                    return Ok(());
                }
                "a session is passed on by the hop before"
            }
            (Self::Gateway(_), Frame::Open(_)) => "a gateway opens its own sessions, at their first hop",
            (Self::Gateway(_), Frame::Rows { .. } | Frame::Room { .. } | Frame::Token { .. }) => {
                "only peers send rows, room and tokens"
            }
            (Self::Peer(_), Frame::Close { .. }) => "only its gateway closes a session",
            (_, Frame::Refused { .. } | Frame::Pong { .. }) => "that is said by whoever was called",
        };
        Err(rule)
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(id) => write!(f, "gateway {id}"),
            Self::Peer(name) => write!(f, "peer {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_swarm::{Layers, Load};

    use super::*;
    use crate::frame::{Hop, Open, Refusal, RowData, SessionId};
    use crate::sampling::SamplingParams;

    fn gateway(incarnation: u64) -> GatewayId {
        GatewayId { name: "g".into(), incarnation }
    }

    /// An open of the session of gateway 7 for hop `index` of the route a, b, c.
    fn open(index: u32) -> Frame {
        let hop =
            |name: &str| Hop { peer: name.into(), addr: String::new(), layers: Layers::new(0, 1), from: 0 };
        Frame::Open(Open {
            session: SessionId(1),
            attempt: 1,
            gateway: gateway(7),
            index,
            route: ["a", "b", "c"].map(hop).into(),
            tokens: Arc::new(vec![1]),
            prompt_len: 1,
            max_len: 9,
            sampling: Arc::new(SamplingParams::default()),
            eos: Arc::default(),
            adapter: None,
            arithmetic: None,
            born_ms: 0,
        })
    }

    #[test]
    fn every_frame_has_its_senders() {
        let (session, attempt) = (SessionId(1), 1);
        let rows =
            Frame::Rows { session, attempt, index: 1, start: 0, count: 1, data: RowData::new(vec![0.0]) };
        let token = Frame::Token {
            session,
            attempt,
            position: 1,
            token: 2,
            logprob: 0.0,
            top: Vec::new(),
            finish: None,
        };
        let room = Frame::Room { session, attempt, index: 1, until: 9 };
        let close = Frame::Close { session, attempt };
        let refused = Frame::Refused { session, attempt, index: 0, reason: Refusal::NoPages };
        let pong = Frame::Pong { seq: 1, load: Load::default(), held: Vec::new() };
        let ping = Frame::Ping { seq: 1, epoch: 1 };
        let senders = [
            Sender::Gateway(gateway(7)),
            Sender::Gateway(gateway(8)),
            Sender::Gateway(GatewayId { name: "h".into(), incarnation: 7 }),
            Sender::Peer("a".into()),
            Sender::Peer("b".into()),
            Sender::Peer("z".into()),
        ];
        // A row for each frame, a column for each sender.
        let table = [
            (open(0), [true, false, false, false, false, false]),
            (open(1), [false, false, false, true, false, false]),
            (open(2), [false, false, false, false, true, false]),
            (open(9), [false, false, false, false, false, false]),
            (rows, [false, false, false, true, true, true]),
            (room, [false, false, false, true, true, true]),
            (token, [false, false, false, true, true, true]),
            (close, [true, true, true, false, false, false]),
            (refused, [false; 6]),
            (pong, [false; 6]),
            (ping, [true; 6]),
        ];
        for (frame, may) in table {
            for (sender, may) in senders.iter().zip(may) {
                assert_eq!(sender.may_send(&frame).is_ok(), may, "{sender}: {frame:?}");
            }
        }
    }
}
