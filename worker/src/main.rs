//! dunlin-worker
fn main() {}
