//! dunlin-model
