//! Bounds that two parts of a swarm must agree on, each written once: one side refuses what is beyond, the other must not let it come to that.
//!
//! What one process keeps to by itself (its queues, its retries) is bounded where it is.

/// Most layers a model may have; bounds what is read from a topology.
pub const LAYERS_MAX: u32 = 4096;
/// Most peers of one swarm.
pub const PEERS_MAX: usize = 4096;
/// Most hops of a route.
pub const ROUTE_HOPS_MAX: usize = 1024;
/// Longest sequence that a manifest may ask for, in tokens; a session that is replayed tells all of its own in one message.
pub const CONTEXT_TOKENS_MAX: u32 = 1 << 24;
/// Most sessions that one stage has at once.
pub const SESSIONS_MAX: usize = 1024;
/// Most entries of a list of sessions or of ranges of layers in one message.
pub const LIST_ENTRIES_MAX: usize = 1 << 16;
/// Longest name of an adapter, in bytes.
pub const ADAPTER_NAME_BYTES_MAX: usize = 253;

/// Largest message taken from a peer, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 96 << 20;
/// Rows of a session that a hop takes in each attempt before it has said how many it takes: the hop before sends so many unasked, and no more. A number of all versions,
/// for neither of two neighbours could hear another one in time.
pub const FIRST_WINDOW_ROWS: u32 = 256;
/// Rows travel in frames of at most about this many bytes, so that other sessions' frames need not wait long behind them.
pub const ROWS_BYTES_MAX: usize = 1 << 20;

/// Most stages that a manifest of a run may ask for, and a status tells of.
pub const STAGES_MAX: u32 = 64;
/// Longest sequence of a run, in tokens.
pub const SEQUENCE_TOKENS_MAX: usize = 1 << 20;
/// Most sequences of a step.
pub const BATCH_SEQUENCES_MAX: usize = 1 << 20;
/// Most sequences of a microbatch.
pub const MICROBATCH_SEQUENCES_MAX: usize = 1 << 12;
/// Most tokens of a microbatch.
pub const MICROBATCH_TOKENS_MAX: usize = 1 << 22;
/// Most microbatches of a step: more would leave the fixed-point sums of gradients too little room for each.
pub const MICROBATCHES_MAX: usize = 1 << 12;
/// Greatest width of an adapter, and most rows of a prompt.
pub const ADAPTER_ROWS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a token in a packed list of protobuf, at most.
    const TOKEN_BYTES: usize = 5;

    #[test]
    fn a_session_of_the_longest_sequence_can_be_told_in_one_message() {
        let opening = CONTEXT_TOKENS_MAX as usize * TOKEN_BYTES;
        let rest = 1 << 20;
        assert!(opening + rest <= MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_a_peer_says_of_itself_fits_its_lists() {
        const { assert!(SESSIONS_MAX <= LIST_ENTRIES_MAX && LAYERS_MAX as usize <= LIST_ENTRIES_MAX) };
        const {
            assert!(ROWS_BYTES_MAX * 8 <= MESSAGE_BYTES_MAX, "a frame goes over its bound by one row at most")
        };
    }

    #[test]
    fn every_stage_can_have_layers_and_every_hop_a_peer() {
        const { assert!(STAGES_MAX <= LAYERS_MAX && ROUTE_HOPS_MAX <= PEERS_MAX) };
    }

    #[test]
    fn one_of_the_longest_sequences_is_a_microbatch() {
        const { assert!(SEQUENCE_TOKENS_MAX + ADAPTER_ROWS_MAX <= MICROBATCH_TOKENS_MAX) };
        const { assert!(MICROBATCH_SEQUENCES_MAX <= BATCH_SEQUENCES_MAX) };
    }
}
