//! What both ends of a stream keep to.

/// Bytes of a piece.
pub const PIECE_BYTES: usize = 1 << 20;
/// Largest message with a piece, whatever its values are.
pub(crate) const PIECE_MESSAGE_MAX: usize = 2 * PIECE_BYTES;
/// Messages that may wait on one stream; a side that reads nothing for so long is lost.
pub(crate) const QUEUE_MAX: usize = 4096;
