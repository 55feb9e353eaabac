//! dunlin-protocol
