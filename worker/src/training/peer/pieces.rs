//! What mates are answered, piece by piece.

use std::time::Duration;

use bytes::Bytes;
use dunlin_wire::proto;
use dunlin_wire::train::{PIECE_BYTES, PieceSender};
use tokio::time::timeout;
use tonic::Status;

use super::super::values::{Word, to_bytes};

/// A mate that takes nothing for so long gets nothing more.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer without values.
pub fn refuse(pieces: &PieceSender, why: &str) {
    // The channel is new, and the mate may have gone.
    let _ = pieces.try_send(Err(Status::failed_precondition(why)));
}

/// A peer's counts fit: they are bounded by what is in memory.
pub fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// One piece; false when the mate is gone or takes nothing.
pub async fn send_bytes(data: Bytes, step: u64, pieces: &PieceSender) -> bool {
    let sent = timeout(PATIENCE, pieces.send(Ok(proto::Piece { data, step }))).await;
    matches!(sent, Ok(Ok(())))
}

/// Values, piece by piece; false when the mate is gone or takes nothing.
pub async fn send<const N: usize, T: Word<N>>(values: &[T], step: u64, pieces: &PieceSender) -> bool {
    for piece in values.chunks(PIECE_BYTES / N) {
        if !send_bytes(to_bytes(piece), step, pieces).await {
            return false;
        }
    }
    // A piece says the step, also when there is nothing else to say.
    !values.is_empty() || send_bytes(Bytes::new(), step, pieces).await
}
