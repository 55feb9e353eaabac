//! dunlin-operator
fn main() {}
