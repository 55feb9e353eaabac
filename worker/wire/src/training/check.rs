//! What a message of training must have, and how much of it. A message as a whole has at most
//! [`MESSAGE_BYTES_MAX`](dunlin_swarm::limits::MESSAGE_BYTES_MAX).

use dunlin_swarm::{LAYERS_MAX, PEERS_MAX, PeerName};
use thiserror::Error;

use crate::identity::Role;

/// Bytes of a name, an address or a digest.
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of a text for people.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Peers in a list.
pub const MATES_MAX: usize = PEERS_MAX;
/// Stages of a run, and shards of a stage beside its own.
pub const STAGES_MAX: usize = LAYERS_MAX as usize;
/// Tensors of a shard.
pub const TENSORS_MAX: usize = 1 << 20;
/// Steps that are open at once.
pub const OPEN_STEPS_MAX: usize = 64;

/// A message that no process of this version would send.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// It lacks something, or says something that a later build invented.
    #[error("{0} is missing, or not known here: all processes of a run must be of one image")]
    Missing(&'static str),
    /// A list or a text is too long.
    #[error("{field} has {len}, more than {max}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Entries of the list, or bytes of the text.
        len: usize,
        /// That it may have.
        max: usize,
    },
    /// One thing is said more than once.
    #[error("{field} has {entry} twice")]
    Twice {
        /// The field.
        field: &'static str,
        /// What is there twice.
        entry: String,
    },
    /// It is no SHA-256.
    #[error("{0} is not 64 hexadecimal digits")]
    NoDigest(&'static str),
    /// It speaks as builds did before messages had types.
    #[error(
        "the other process speaks JSON, as earlier builds did: all processes of a run must be of one image"
    )]
    Json,
    /// Another role may say it, or another time.
    #[error("a {role} sends {what}")]
    OutOfPlace {
        /// Of whoever sent it.
        role: Role,
        /// What was sent.
        what: &'static str,
    },
}

/// What must be there.
pub(super) fn need<T>(value: Option<T>, field: &'static str) -> Result<T, MessageError> {
    value.ok_or(MessageError::Missing(field))
}

/// Nothing of the field that was all there was before messages had types.
pub(super) const fn no_json(json: &str) -> Result<(), MessageError> {
    if json.is_empty() { Ok(()) } else { Err(MessageError::Json) }
}

fn at_most(len: usize, max: usize, field: &'static str) -> Result<(), MessageError> {
    if len <= max { Ok(()) } else { Err(MessageError::TooLong { field, len, max }) }
}

/// The name of a peer or trainer: never empty.
pub(super) fn name(name: String, field: &'static str) -> Result<PeerName, MessageError> {
    if name.is_empty() {
        return Err(MessageError::Missing(field));
    }
    short(name, field).map(PeerName)
}

/// An address, a host or a digest, which may be empty.
pub(super) fn short(text: String, field: &'static str) -> Result<String, MessageError> {
    at_most(text.len(), NAME_BYTES_MAX, field)?;
    Ok(text)
}

/// A text for people.
pub(super) fn text(text: String, field: &'static str) -> Result<String, MessageError> {
    at_most(text.len(), TEXT_BYTES_MAX, field)?;
    Ok(text)
}

/// A list of at most `max` entries.
pub(super) fn list<T>(list: Vec<T>, max: usize, field: &'static str) -> Result<Vec<T>, MessageError> {
    at_most(list.len(), max, field)?;
    Ok(list)
}

/// A SHA-256, hexadecimal.
pub(super) fn digest(text: String, field: &'static str) -> Result<String, MessageError> {
    let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_digest { Ok(text) } else { Err(MessageError::NoDigest(field)) }
}
