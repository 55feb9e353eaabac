//! dunlin-wire
