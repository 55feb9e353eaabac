//! dunlin-gateway
