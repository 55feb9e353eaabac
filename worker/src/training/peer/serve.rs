//! What mates pull from this peer: state, updates, sums, parts of averages.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{PIECE_BYTES, PieceSender};
use tokio::sync::oneshot;
use tonic::Status;

use super::super::values::to_bytes;
use super::average::{self, Formed};
use super::engine::Engine;

/// An answer without values.
pub fn refuse(pieces: &PieceSender, why: &str) {
    // The channel is new, and the mate may have gone.
    let _ = pieces.try_send(Err(Status::failed_precondition(why)));
}

/// Answers as soon as the engine gets to it, piece by piece, at the mate's pace.
pub fn serve(engine: &Engine, formed: &Arc<Formed>, request: proto::PullRequest, pieces: PieceSender) {
    let Some(what) = request.what else { return refuse(&pieces, "nothing asked for") };
    let (answer_in, answer) = oneshot::channel::<Result<(Bytes, u64), String>>();
    match what {
        What::Average(part) => {
            tokio::spawn(average::give_result(Arc::clone(formed), part, pieces));
            return;
        }
        What::Sums(part) => {
            tokio::spawn(average::give_share(engine.clone(), part, pieces));
            return;
        }
        What::AllSums(step) => engine.run(move |bench| {
            let sums = bench.stage.as_ref().and_then(|stage| stage.sums(step));
            let sums = sums.map(|sums| (to_bytes(sums), 0));
            let _ = answer_in.send(sums.ok_or_else(|| "this peer is not at that step".to_owned()));
        }),
        What::State(span) => engine.run(move |bench| {
            let state = bench.stage.as_ref().map(|stage| {
                let values = stage.state_of(index(span.from)..index(span.to));
                (to_bytes(&values), stage.step())
            });
            let _ = answer_in.send(state.ok_or_else(|| "this peer has no state".to_owned()));
        }),
        What::Update(step) => engine.run(move |bench| {
            let update = bench.stage.as_ref().and_then(|stage| stage.update(step));
            let update = update.map(|u| (to_bytes(&u.gradient), step));
            let _ = answer_in.send(update.ok_or_else(|| format!("the update of step {step} is not here")));
        }),
    }
    tokio::spawn(async move {
        match answer.await {
            Ok(Ok((values, step))) => send(values, step, &pieces).await,
            Ok(Err(why)) => refuse(&pieces, &why),
            Err(_) => refuse(&pieces, "the peer ends"),
        }
    });
}

/// A peer's counts fit: they are bounded by what is in memory.
pub fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

async fn send(mut values: Bytes, step: u64, pieces: &PieceSender) {
    loop {
        let piece = values.split_to(values.len().min(PIECE_BYTES));
        if pieces.send(Ok(proto::Piece { data: piece, step })).await.is_err() || values.is_empty() {
            return;
        }
    }
}
