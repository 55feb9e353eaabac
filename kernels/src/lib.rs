//! dunlin-kernels
