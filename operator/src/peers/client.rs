//! stand-in
use super::{Connect, Talk, Target};
/// Who the operator is.
#[derive(Default)]
pub struct Identity {
    /// Our name.
    pub name: String,
    /// CA.
    pub authority: String,
    /// cert.
    pub certificate: String,
    /// key.
    pub key: String,
}
/// grpc
pub struct GrpcConnector;
impl Connect for GrpcConnector {
    fn connect(&self, _: &Target) -> Result<Box<dyn Talk>, String> {
        Err("stand-in".into())
    }
}
