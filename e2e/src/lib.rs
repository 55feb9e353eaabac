//! dunlin-e2e
