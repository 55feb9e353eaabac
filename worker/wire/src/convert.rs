//! Wire to protocol types and back. What arrives is checked here; behind it types are trusted.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::sampling::{LOGIT_BIAS_MAX, LOGPROBS_MAX};
use dunlin_protocol::{
    FinishReason, Frame, GatewayId, HeldSession, Hop, Open, Refusal, RowData, SamplingParams, SessionId,
};
use dunlin_swarm::limits::{ADAPTER_NAME_BYTES_MAX, CONTEXT_TOKENS_MAX, LIST_ENTRIES_MAX, ROUTE_HOPS_MAX};
use dunlin_swarm::{Layers, Load, ModelSizes, NumericsClass, Paging};
use thiserror::Error;

use crate::proto;
use crate::proto::frame::Body;
use crate::proto::refused::Reason;

/// A frame that no peer of this version would send.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a frame that makes no sense: {0}")]
pub struct Senseless(pub &'static str);

fn check(sound: bool, what: &'static str) -> Result<(), Senseless> {
    if sound { Ok(()) } else { Err(Senseless(what)) }
}

/// The wire form of a frame.
#[must_use]
pub fn to_wire(frame: &Frame) -> proto::Frame {
    let body = match frame {
        Frame::Open(open) => Body::Open(open_to_wire(open)),
        Frame::Rows { session, attempt, index, start, count, data } => Body::Rows(proto::Rows {
            session: session.0,
            attempt: *attempt,
            index: *index,
            start: *start,
            count: *count,
            data: rows_to_bytes(data),
        }),
        Frame::Token { session, attempt, position, token, logprob, top, finish } => {
            Body::Token(proto::Token {
                session: session.0,
                attempt: *attempt,
                position: *position,
                token: *token,
                logprob: *logprob,
                top: top.iter().map(|&(token, logprob)| proto::Alternative { token, logprob }).collect(),
                finish: match finish {
                    None => proto::Finish::Not,
                    Some(FinishReason::Eos) => proto::Finish::Eos,
                    Some(FinishReason::Length) => proto::Finish::Length,
                }
                .into(),
            })
        }
        Frame::Room { session, attempt, index, until } => {
            let (session, attempt, index, until) = (session.0, *attempt, *index, *until);
            Body::Room(proto::Room { session, attempt, index, until })
        }
        Frame::Close { session, attempt } => {
            Body::Close(proto::Close { session: session.0, attempt: *attempt })
        }
        Frame::Refused { session, attempt, index, reason } => Body::Refused(proto::Refused {
            session: session.0,
            attempt: *attempt,
            index: *index,
            reason: Some(refusal_to_wire(reason)),
        }),
        Frame::Ping { seq, epoch } => Body::Ping(proto::Ping { seq: *seq, epoch: *epoch }),
        Frame::Pong { seq, load, held } => Body::Pong(proto::Pong {
            seq: *seq,
            load: Some(load_to_wire(load)),
            held: held.iter().map(held_to_wire).collect(),
        }),
    };
    proto::Frame { body: Some(body) }
}

/// The protocol form of what arrived.
///
/// # Errors
/// When a field is missing or out of its bounds.
pub fn from_wire(frame: proto::Frame) -> Result<Frame, Senseless> {
    Ok(match frame.body.ok_or(Senseless("no body"))? {
        Body::Hello(_) => return Err(Senseless("a second hello")),
        Body::Open(open) => Frame::Open(open_from_wire(open)?),
        Body::Rows(rows) => {
            check(rows.count > 0 && rows.start.checked_add(rows.count).is_some(), "rows without a range")?;
            check(rows.data.len().is_multiple_of(rows.count as usize * 4), "rows of unequal length")?;
            Frame::Rows {
                session: SessionId(rows.session),
                attempt: rows.attempt,
                index: rows.index,
                start: rows.start,
                count: rows.count,
                data: rows_from_bytes(&rows.data),
            }
        }
        Body::Token(token) => {
            check(token.top.len() <= usize::from(LOGPROBS_MAX), "too many alternatives")?;
            let finish = match proto::Finish::try_from(token.finish) {
                Ok(proto::Finish::Not) => None,
                Ok(proto::Finish::Eos) => Some(FinishReason::Eos),
                Ok(proto::Finish::Length) => Some(FinishReason::Length),
                Err(_) => return Err(Senseless("an unknown finish")),
            };
            Frame::Token {
                session: SessionId(token.session),
                attempt: token.attempt,
                position: token.position,
                token: token.token,
                logprob: token.logprob,
                top: token.top.iter().map(|a| (a.token, a.logprob)).collect(),
                finish,
            }
        }
        Body::Room(room) => Frame::Room {
            session: SessionId(room.session),
            attempt: room.attempt,
            index: room.index,
            until: room.until,
        },
        Body::Close(close) => Frame::Close { session: SessionId(close.session), attempt: close.attempt },
        Body::Refused(refused) => Frame::Refused {
            session: SessionId(refused.session),
            attempt: refused.attempt,
            index: refused.index,
            reason: refusal_from_wire(refused.reason.ok_or(Senseless("a refusal without a reason"))?)?,
        },
        Body::Ping(ping) => Frame::Ping { seq: ping.seq, epoch: ping.epoch },
        Body::Pong(pong) => {
            check(pong.held.len() <= LIST_ENTRIES_MAX, "too many sessions in a pong")?;
            let held = pong.held.into_iter().map(held_from_wire).collect::<Result<_, _>>()?;
            Frame::Pong { seq: pong.seq, load: load_from_wire(pong.load.unwrap_or_default())?, held }
        }
    })
}

fn rows_to_bytes(data: &RowData) -> Bytes {
    let mut out = Vec::with_capacity(data.len() * 4);
    for value in data.as_slice() {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out.into()
}

fn rows_from_bytes(bytes: &[u8]) -> RowData {
    RowData::new(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// The wire form of a layer range.
#[must_use]
pub(crate) fn layers_to_wire(layers: Layers) -> proto::Layers {
    proto::Layers { start: layers.start, end: layers.end }
}

pub(crate) fn layers_from_wire(layers: Option<proto::Layers>) -> Result<Layers, Senseless> {
    let layers = layers.ok_or(Senseless("no layers"))?;
    check(layers.start <= layers.end, "layers that end before they start")?;
    Ok(Layers::new(layers.start, layers.end))
}

fn open_to_wire(open: &Open) -> proto::Open {
    let s = &open.sampling;
    proto::Open {
        session: open.session.0,
        attempt: open.attempt,
        gateway: open.gateway.name.clone(),
        gateway_incarnation: open.gateway.incarnation,
        index: open.index,
        route: open
            .route
            .iter()
            .map(|hop| proto::Hop {
                peer: hop.peer.0.clone(),
                addr: hop.addr.clone(),
                layers: Some(layers_to_wire(hop.layers)),
                from: hop.from,
            })
            .collect(),
        tokens: open.tokens.to_vec(),
        prompt_len: open.prompt_len,
        max_len: open.max_len,
        sampling: Some(proto::Sampling {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            logit_bias: s.logit_bias.iter().map(|&(token, bias)| proto::Bias { token, bias }).collect(),
            seed: s.seed,
            logprobs: s.logprobs.map(u32::from),
        }),
        eos: open.eos.to_vec(),
        adapter: open.adapter.as_deref().unwrap_or_default().to_owned(),
        born_ms: open.born_ms,
        arithmetic: NumericsClass::number_of(open.arithmetic),
    }
}

fn open_from_wire(open: proto::Open) -> Result<Open, Senseless> {
    check((1..=ROUTE_HOPS_MAX).contains(&open.route.len()), "a route without hops, or with too many")?;
    check((1..=CONTEXT_TOKENS_MAX as usize).contains(&open.tokens.len()), "no tokens, or too many")?;
    check(open.eos.len() <= LOGIT_BIAS_MAX, "too many tokens that end a sequence")?;
    check(open.adapter.len() <= ADAPTER_NAME_BYTES_MAX, "a name of an adapter that is too long")?;
    let s = open.sampling.ok_or(Senseless("no sampling"))?;
    check(s.logit_bias.len() <= LOGIT_BIAS_MAX, "too many biases")?;
    let numbers =
        [s.temperature, s.top_p, s.min_p, s.repetition_penalty, s.presence_penalty, s.frequency_penalty];
    let finite = numbers.iter().chain(s.logit_bias.iter().map(|b| &b.bias)).all(|v| v.is_finite());
    check(finite && s.repetition_penalty > 0.0, "sampling parameters that are no numbers")?;
    let route = open.route.into_iter().map(|hop| {
        let layers = layers_from_wire(hop.layers)?;
        Ok(Hop { peer: hop.peer.into(), addr: hop.addr, layers, from: hop.from })
    });
    Ok(Open {
        session: SessionId(open.session),
        attempt: open.attempt,
        gateway: GatewayId { name: open.gateway, incarnation: open.gateway_incarnation },
        index: open.index,
        route: route.collect::<Result<_, _>>()?,
        tokens: Arc::new(open.tokens),
        prompt_len: open.prompt_len,
        max_len: open.max_len,
        sampling: Arc::new(SamplingParams {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            logit_bias: s.logit_bias.iter().map(|b| (b.token, b.bias)).collect(),
            seed: s.seed,
            logprobs: s.logprobs.map(|n| u8::try_from(n).unwrap_or(LOGPROBS_MAX).min(LOGPROBS_MAX)),
        }),
        eos: Arc::new(open.eos),
        adapter: (!open.adapter.is_empty()).then(|| open.adapter.into()),
        born_ms: open.born_ms,
        arithmetic: NumericsClass::from_number(open.arithmetic),
    })
}

fn refusal_to_wire(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::NoPages => Reason::NoPages(true),
        Refusal::NeedReplay { have } => Reason::NeedReplay(*have),
        Refusal::NoJournal => Reason::NoJournal(true),
        Refusal::NotHolding { layers } => Reason::NotHolding(layers_to_wire(*layers)),
        Refusal::NoAdapter { name } => Reason::NoAdapter(name.clone()),
        Refusal::OtherArithmetic { own } => Reason::OtherArithmetic(own.version()),
        Refusal::LinkDown { to } => Reason::LinkDown(to.0.clone()),
        Refusal::NonFinite { layer } => Reason::NonFinite(*layer),
        Refusal::TooManySessions => Reason::TooManySessions(true),
        Refusal::BadRequest { message } => Reason::BadRequest(message.clone()),
    }
}

fn refusal_from_wire(reason: Reason) -> Result<Refusal, Senseless> {
    Ok(match reason {
        Reason::NoPages(_) => Refusal::NoPages,
        Reason::NeedReplay(have) => Refusal::NeedReplay { have },
        Reason::NoJournal(_) => Refusal::NoJournal,
        Reason::NotHolding(layers) => Refusal::NotHolding { layers: layers_from_wire(Some(layers))? },
        Reason::NoAdapter(name) => Refusal::NoAdapter { name },
        Reason::OtherArithmetic(own) => Refusal::OtherArithmetic {
            own: NumericsClass::from_number(own)
                .ok_or(Senseless("a refusal for another arithmetic that names none"))?,
        },
        Reason::LinkDown(to) => Refusal::LinkDown { to: to.into() },
        Reason::NonFinite(layer) => Refusal::NonFinite { layer },
        Reason::TooManySessions(_) => Refusal::TooManySessions,
        Reason::BadRequest(message) => Refusal::BadRequest { message },
    })
}

fn held_to_wire(held: &HeldSession) -> proto::Held {
    proto::Held {
        session: held.session.0,
        attempt: held.attempt,
        layers: Some(layers_to_wire(held.layers)),
        have: held.have,
        waiting: held.waiting,
    }
}

fn held_from_wire(held: proto::Held) -> Result<HeldSession, Senseless> {
    let layers = layers_from_wire(held.layers)?;
    let proto::Held { session, attempt, have, waiting, .. } = held;
    Ok(HeldSession { session: SessionId(session), attempt, layers, have, waiting })
}

/// What planning needs to know of a model.
#[must_use]
pub fn model_sizes(model: proto::ModelFacts) -> ModelSizes {
    let mut layer_bytes = model.layer_bytes;
    if let Some(first) = layer_bytes.first_mut() {
        *first = first.saturating_add(model.embedding_bytes);
    }
    if let Some(last) = layer_bytes.last_mut() {
        *last = last.saturating_add(model.head_bytes);
    }
    let shared_bytes = if model.tied { model.embedding_bytes.min(model.head_bytes) } else { 0 };
    ModelSizes { layer_bytes, shared_bytes, sequence_bytes: model.sequence_bytes }
}

/// The wire form of a load.
#[must_use]
pub fn load_to_wire(load: &Load) -> proto::Load {
    proto::Load {
        queue_rows: load.queue_rows,
        free_pages: load.free_pages,
        total_pages: load.total_pages,
        rows_per_s_per_layer: load.rows_per_s_per_layer,
        held: load.held.iter().copied().map(layers_to_wire).collect(),
        draining: load.draining,
        spare_pages: Some(load.spare_pages),
        layer_rows: load.layer_rows,
        arithmetic: NumericsClass::number_of(load.arithmetic),
        page_positions: load.paging.page_positions,
        positions_ahead: load.paging.positions_ahead,
        positions_behind: Some(load.paging.positions_behind),
    }
}

/// The planner's form of a load.
///
/// # Errors
/// When it has senseless layers or numbers.
pub fn load_from_wire(load: proto::Load) -> Result<Load, Senseless> {
    check(
        load.held.len() <= LIST_ENTRIES_MAX && load.rows_per_s_per_layer.is_finite(),
        "a load that cannot be",
    )?;
    let paging = paging_from_wire(&load)?;
    let held = load.held.into_iter().map(|l| layers_from_wire(Some(l))).collect::<Result<_, _>>()?;
    Ok(Load {
        queue_rows: load.queue_rows,
        free_pages: load.free_pages,
        total_pages: load.total_pages,
        rows_per_s_per_layer: load.rows_per_s_per_layer,
        held,
        draining: load.draining,
        spare_pages: load.spare_pages.unwrap_or(load.free_pages),
        layer_rows: load.layer_rows,
        arithmetic: NumericsClass::from_number(load.arithmetic),
        paging,
    })
}

/// How its sender counts pages.
fn paging_from_wire(load: &proto::Load) -> Result<Paging, Senseless> {
    if load.page_positions == 0 {
        return Ok(Paging::OWN);
    }
    let paging = Paging {
        page_positions: load.page_positions,
        positions_ahead: load.positions_ahead,
        positions_behind: load.positions_behind.unwrap_or(Paging::OWN.positions_behind),
    };
    for (number, what) in [
        (paging.page_positions, "a load whose page_positions is beyond any sequence"),
        (paging.positions_ahead, "a load whose positions_ahead is beyond any sequence"),
        (paging.positions_behind, "a load whose positions_behind is beyond any sequence"),
    ] {
        check(number <= CONTEXT_TOKENS_MAX, what)?;
    }
    Ok(paging)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_protocol::{
        FinishReason, Frame, GatewayId, HeldSession, Hop, Open, Refusal, RowData, SamplingParams, SessionId,
    };
    use dunlin_swarm::{Layers, Load, NumericsClass, Paging};

    use super::{from_wire, load_from_wire, load_to_wire, to_wire};
    use crate::proto;

    fn open() -> Open {
        Open {
            session: SessionId(u64::MAX),
            attempt: 3,
            gateway: GatewayId { name: "g".into(), incarnation: 9 },
            index: 1,
            route: vec![Hop { peer: "a".into(), addr: "h:1".into(), layers: Layers::new(0, 4), from: 7 }],
            tokens: Arc::new(vec![1, 2, 3]),
            prompt_len: 2,
            max_len: 9,
            sampling: Arc::new(SamplingParams {
                temperature: 0.5,
                logit_bias: vec![(4, -1.5)],
                logprobs: Some(3),
                ..SamplingParams::default()
            }),
            eos: Arc::new(vec![2]),
            adapter: Some("formal".into()),
            born_ms: 1234,
            arithmetic: NumericsClass::from_number(5),
        }
    }

    #[test]
    fn a_session_of_the_longest_sequence_that_a_manifest_may_ask_for_is_opened() {
        use prost::Message;
        let tokens = Arc::new(vec![u32::MAX; dunlin_swarm::limits::CONTEXT_TOKENS_MAX as usize]);
        let wire = to_wire(&Frame::Open(Open { tokens: tokens.clone(), ..open() }));
        assert!(wire.encoded_len() <= dunlin_swarm::limits::MESSAGE_BYTES_MAX);
        let Ok(Frame::Open(read)) = from_wire(wire) else { panic!("it is refused") };
        assert!(read.tokens == tokens);
    }

    #[test]
    fn every_frame_comes_back_as_it_was() {
        let session = SessionId(5);
        let refused = |reason| Frame::Refused { session, attempt: 1, index: 2, reason };
        let data = RowData::new(vec![1.5, -0.0, f32::MIN_POSITIVE, 3e38]);
        let load = Load {
            queue_rows: 1,
            free_pages: 2,
            total_pages: 3,
            rows_per_s_per_layer: 4.5,
            held: vec![Layers::new(1, 2)],
            draining: true,
            spare_pages: 6,
            layer_rows: u64::MAX,
            arithmetic: NumericsClass::from_number(7),
            paging: Paging { page_positions: 64, positions_ahead: 0, positions_behind: 0 },
        };
        let held = vec![HeldSession { session, attempt: 1, layers: Layers::new(0, 9), have: 77, waiting: 8 }];
        let (position, token, logprob, top) = (8, 9, -0.5, vec![(9, -0.5)]);
        let frames = [
            Frame::Open(open()),
            Frame::Open(Open { adapter: None, arithmetic: None, ..open() }),
            Frame::Rows { session, attempt: 1, index: 2, start: 3, count: 2, data },
            Frame::Token {
                session,
                attempt: 1,
                position,
                token,
                logprob,
                top,
                finish: Some(FinishReason::Eos),
            },
            Frame::Room { session, attempt: 1, index: 2, until: 300 },
            Frame::Close { session, attempt: u32::MAX },
            refused(Refusal::NoPages),
            refused(Refusal::NeedReplay { have: 4 }),
            refused(Refusal::NoJournal),
            refused(Refusal::NotHolding { layers: Layers::new(3, 4) }),
            refused(Refusal::NoAdapter { name: "formal".into() }),
            refused(Refusal::OtherArithmetic { own: NumericsClass::from_number(2).unwrap() }),
            refused(Refusal::LinkDown { to: "x".into() }),
            refused(Refusal::NonFinite { layer: 30 }),
            refused(Refusal::TooManySessions),
            refused(Refusal::BadRequest { message: "why".into() }),
            Frame::Ping { seq: 1, epoch: 2 },
            Frame::Pong { seq: 1, load, held },
            Frame::Pong { seq: 1, load: Load::default(), held: Vec::new() },
        ];
        for frame in frames {
            assert_eq!(from_wire(to_wire(&frame)).as_ref(), Ok(&frame));
        }
    }

    #[test]
    fn senseless_frames_are_refused() {
        let mut wire = to_wire(&Frame::Open(open()));
        let Some(proto::frame::Body::Open(body)) = &mut wire.body else { panic!("an open") };
        body.sampling.as_mut().unwrap().temperature = f32::NAN;
        assert!(from_wire(wire).is_err());
        let rows = proto::Rows { count: 3, data: vec![0; 8].into(), ..proto::Rows::default() };
        assert!(from_wire(proto::Frame { body: Some(proto::frame::Body::Rows(rows)) }).is_err());
        let reason = Some(proto::refused::Reason::OtherArithmetic(0));
        let refused = proto::Refused { reason, ..proto::Refused::default() };
        assert!(from_wire(proto::Frame { body: Some(proto::frame::Body::Refused(refused)) }).is_err());
        assert!(from_wire(proto::Frame { body: None }).is_err());
    }

    #[test]
    fn a_peer_says_how_it_counts_pages_and_one_that_does_not_counts_as_it_did_before_it_could() {
        let older = load_to_wire(&Load::default());
        let older = proto::Load { page_positions: 0, positions_ahead: 0, positions_behind: None, ..older };
        let paging = |load: &proto::Load| load_from_wire(load.clone()).unwrap().paging;
        let behind = |positions_behind| Paging { page_positions: 32, positions_ahead: 0, positions_behind };
        assert_eq!(
            paging(&older),
            Paging { page_positions: 16, positions_ahead: 256, positions_behind: 384 }
        );
        let said = proto::Load { page_positions: 32, ..older.clone() };
        assert_eq!(paging(&said), behind(384), "it has windows, and says nothing of them");
        assert_eq!(paging(&proto::Load { positions_behind: Some(0), ..said.clone() }), behind(0));
        for (wrong, field) in [
            (proto::Load { page_positions: u32::MAX, ..older.clone() }, "page_positions"),
            (
                proto::Load { page_positions: 16, positions_ahead: u32::MAX, ..older.clone() },
                "positions_ahead",
            ),
            (proto::Load { positions_behind: Some(u32::MAX), ..said }, "positions_behind"),
        ] {
            assert!(load_from_wire(wrong).unwrap_err().to_string().contains(field));
        }
    }
}
