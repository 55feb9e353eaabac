//! Averages among the peers of a shard, by butterfly: part `j` of everybody's sums goes to member `j`, which adds them and gives the
//! result to all. What it gives is what it keeps, so all end with the same bits. See [`dunlin_train::average`] for what is added and kept.
//!
//! All goes chunk by chunk: while one is added, others are on their way, and the result of a chunk leaves before the next is added. So an
//! average takes the memory of its result, and of what may be on its way on a stream (16 MiB a mate).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::training::{Mate, ShardId, StageId};
use dunlin_train::average::{Average, Share, Total, chunks, part, result_codec};
use dunlin_train::codec::CodecError;
use dunlin_train::config::GradientWire;
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{PieceSender, Pieces};
use futures::future::try_join_all;
use tokio::sync::oneshot;

use super::super::values::{Clients, Fault};
use super::alarm::Alarm;
use super::engine::{Bench, Engine};
use super::formed::{Formed, Which, range_of};
use super::pieces::send_bytes;

/// Gives a mate the part that it asks for of the sums here.
pub async fn give_share(
    engine: &Engine,
    part: proto::PartOf,
    pieces: &PieceSender,
    alarm: &Alarm,
) -> Result<(), String> {
    let share = share(engine, Which::of(&part), alarm).await?;
    let range = range_of(&part);
    if range.start > range.end || range.end > share.len() {
        return Err("the shard has fewer values".to_owned());
    }
    let mut scratch = Vec::new();
    for chunk in chunks(range) {
        let encoded = share.encode(chunk, &mut scratch);
        let bytes = intact(encoded, alarm).await?;
        // The mate is gone when it no longer wants them.
        if !send_bytes(bytes.into(), part.step, pieces).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Gives a mate the part that was formed here, chunk by chunk, as they are formed.
pub async fn give_result(formed: &Formed, part: proto::PartOf, pieces: &PieceSender) -> Result<(), String> {
    let (which, range) = (Which::of(&part), range_of(&part));
    for (index, _) in chunks(range.clone()).enumerate() {
        let data = formed.wait(which, &range, index).await.ok_or("this peer has not formed that part")?;
        if !send_bytes(data, part.step, pieces).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Sums that are not what was added to them are given to nobody.
async fn intact<T>(encoded: Result<T, CodecError>, alarm: &Alarm) -> Result<T, String> {
    if let Err(error @ CodecError::Changed(_)) = &encoded {
        alarm.raise(error.to_string()).await;
    }
    encoded.map_err(|error| error.to_string())
}

/// What this peer contributes, as of now.
async fn share(engine: &Engine, which: Which, alarm: &Alarm) -> Result<Share, String> {
    let (share_in, share) = oneshot::channel();
    let alarm = alarm.clone();
    engine.run(move |Bench { stage, pool }| {
        let stage = stage.as_mut().filter(|stage| stage.step() == which.step);
        let share = stage.map(|stage| stage.share(pool, which.shard)).transpose();
        let share = share.map_err(|error| {
            alarm.raise_blocking(error.to_string());
            error.to_string()
        });
        // The receiver is gone when the attempt was given up.
        let _ = share_in.send(share);
    });
    let share = share.await.map_err(|_| "the engine ended")?;
    share?.ok_or_else(|| "this peer is not at that step".to_owned())
}

/// Forms the average of a shard with `group`, in which this peer is `me`. `values` is that of an average that is no longer needed, if there is one: what is
/// in it does not matter, and as much memory need not be cleared anew.
///
/// # Errors
/// Which mate failed, and how.
pub async fn form(
    clients: &Clients,
    engine: &Engine,
    formed: &Formed,
    wire: GradientWire,
    which: Which,
    stage: StageId,
    group: &[Mate],
    me: &Mate,
    alarm: &Alarm,
    mut values: Vec<f32>,
) -> Result<Average, Fault> {
    let index = group.iter().position(|m| m.name == me.name).ok_or("this peer is not in the group")?;
    let share = share(engine, which, alarm).await?;
    let (len, count) = (share.len(), group.len());
    values.resize(len, 0.0);
    let (mut rest, mut own, mut pulls) = (values.as_mut_slice(), Default::default(), Vec::new());
    for (i, mate) in group.iter().enumerate() {
        let range = part(len, i, count);
        let (mine, others) = rest.split_at_mut(range.len());
        rest = others;
        if i == index {
            own = mine;
        } else {
            pulls.push(async move {
                let gathered = gather(clients, wire, mate, stage, which.part(&range), mine).await;
                clients.blame(mate, gathered)
            });
        }
    }
    formed.begin(which, part(len, index, count));
    let reduced = reduce(clients, formed, wire, which, stage, group, index, &share, alarm, own);
    let (lost, _) = tokio::try_join!(reduced, try_join_all(pulls))?;
    Ok(Average { values, index, count, lost, bits: 0 })
}

/// Adds this peer's part of everybody's sums, to `out` and for the others to pull. What its encoding lost.
async fn reduce(
    clients: &Clients,
    formed: &Formed,
    wire: GradientWire,
    which: Which,
    stage: StageId,
    group: &[Mate],
    index: usize,
    share: &Share,
    alarm: &Alarm,
    out: &mut [f32],
) -> Result<Vec<f32>, Fault> {
    let range = part(share.len(), index, group.len());
    let asks = group.iter().enumerate().map(|(i, mate)| {
        let what = What::Sums(which.part(&range));
        async move {
            if i == index {
                return Ok(None);
            }
            clients.blame(mate, clients.ask(mate, stage, what).await).map(Some)
        }
    });
    let mut theirs = try_join_all(asks).await?;
    let (mut total, mut lost) = (Total::new(wire, group.len()), Vec::new());
    for chunk in chunks(range.clone()) {
        total.begin(chunk.len());
        for (mate, pieces) in group.iter().zip(&mut theirs) {
            match pieces {
                None => intact(total.add_own(share, &chunk), alarm).await?,
                Some(pieces) => {
                    let added = next(pieces).await;
                    let added = added.and_then(|bytes| total.add(&bytes).map_err(|e| e.to_string()));
                    clients.blame(mate, added)?;
                }
            }
        }
        let place = &mut out[chunk.start - range.start..chunk.end - range.start];
        let bytes = total.end(place, &mut lost).map_err(|e| e.to_string())?;
        formed.push(which, bytes.into());
    }
    Ok(lost)
}

/// Pulls a part that a mate forms.
async fn gather(
    clients: &Clients,
    wire: GradientWire,
    mate: &Mate,
    stage: StageId,
    part: proto::PartOf,
    out: &mut [f32],
) -> Result<(), String> {
    let codec = result_codec(wire);
    let range = range_of(&part);
    let mut pieces = clients.ask(mate, stage, What::Average(part)).await?;
    for chunk in chunks(range.clone()) {
        let bytes = next(&mut pieces).await?;
        let place = &mut out[chunk.start - range.start..chunk.end - range.start];
        codec.decode_to(&bytes, place).map_err(|e| e.to_string())?;
    }
    Ok(())
}

async fn next(pieces: &mut Pieces) -> Result<Bytes, String> {
    Ok(pieces.next().await?.ok_or("fewer values came than were asked for")?.data)
}

/// What was formed in the present step: of every shard the newest attempt.
pub type Averages = BTreeMap<ShardId, (u64, Arc<Average>)>;
