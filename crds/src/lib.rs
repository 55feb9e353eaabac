//! dunlin-crds
