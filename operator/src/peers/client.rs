//! mTLS connections to workers. A connection is made when first used and made anew after it breaks.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::{Answering, Connect, Question, Talk, Target};

/// Deadline of a connection attempt.
const CONNECT: Duration = Duration::from_millis(1000);
/// An idle connection is probed this often, so that a silent node is noticed between questions, too.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Who the operator is to the workers of one swarm, in PEM.
#[derive(Default)]
pub struct Identity {
    /// Certificate of the swarm's authority.
    pub authority: String,
    /// Our certificate.
    pub certificate: String,
    /// Our key.
    pub key: String,
}

/// Connects over gRPC.
pub struct GrpcConnector;

impl Connect for GrpcConnector {
    fn connect(&self, target: &Target) -> Result<Box<dyn Talk>, String> {
        Ok(Box::new(GrpcTalk { _channel: channel(target)?, role: target.role }))
    }
}

struct GrpcTalk {
    _channel: Channel,
    role: super::Role,
}

impl Talk for GrpcTalk {
    /// The workers' `Control` service (dunlin-wire) is called from here: `GetStatus`, `Assign` or `PushTopology` by role, `Drain`.
    fn ask(&mut self, _: Question) -> Answering<'_> {
        let role = self.role;
        Box::pin(async move { Err(format!("this build has no client of the Control service of a {role:?}")) })
    }
}

/// A lazy channel that trusts the swarm's authority alone and expects `server_name`.
fn channel(target: &Target) -> Result<Channel, String> {
    let identity = &target.identity;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&identity.authority))
        .identity(tonic::transport::Identity::from_pem(&identity.certificate, &identity.key))
        .domain_name(target.server_name.clone());
    let endpoint = Endpoint::from_shared(format!("https://{}", target.addr)).map_err(|e| e.to_string())?;
    let endpoint = endpoint.tls_config(tls).map_err(|e| e.to_string())?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_lazy())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;
    use tonic::service::Routes;
    use tonic::transport::server::TcpIncoming;
    use tonic::transport::{Server, ServerTlsConfig};

    use super::*;
    use crate::apply::certificates::{Authority, operator_names, stage_names};
    use crate::peers::Role;
    use crate::testing::owner;

    const POD: &str = "smollm2-spot-x7x7x";

    /// A worker with a certificate of `authority`, which asks its clients for one; its address.
    async fn worker(authority: &Authority) -> String {
        let leaf = authority.issue(&stage_names(&owner(), POD)).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(tonic::transport::Identity::from_pem(leaf.certificate, leaf.key))
            .client_ca_root(Certificate::from_pem(authority.certificate()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let server = Server::builder().tls_config(tls).unwrap().add_routes(Routes::default());
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        addr
    }

    /// Whether a call gets through to the worker; which methods it has does not matter here.
    async fn reaches(addr: String, trusted: &Authority, ours: &Authority, server_name: &str) -> bool {
        let leaf = ours.issue(&operator_names(&owner())).unwrap();
        let identity = Identity {
            authority: trusted.certificate().to_owned(),
            certificate: leaf.certificate,
            key: leaf.key,
        };
        let target = Target {
            name: POD.into(),
            role: Role::Stage,
            addr,
            server_name: server_name.into(),
            identity: Arc::new(identity),
        };
        let mut client = tonic::client::Grpc::new(channel(&target).unwrap());
        if client.ready().await.is_err() {
            return false;
        }
        let path = http::uri::PathAndQuery::from_static("/none/None");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let answer = client.unary(tonic::Request::new(()), path, codec).await;
        answer.is_err_and(|status| status.code() == tonic::Code::Unimplemented)
    }

    #[tokio::test]
    async fn both_ends_must_be_of_the_swarm_and_the_worker_the_one_we_mean() {
        let (swarm, other) = (Authority::generate(&owner()).unwrap(), Authority::generate(&owner()).unwrap());
        let name = format!("{POD}.smollm2.dunlin");
        let addr = worker(&swarm).await;
        assert!(reaches(addr.clone(), &swarm, &swarm, &name).await);
        assert!(!reaches(addr.clone(), &swarm, &swarm, "smollm2-spot-other.smollm2.dunlin").await);
        assert!(!reaches(addr.clone(), &swarm, &other, &name).await, "a stranger's certificate");
        assert!(!reaches(addr, &other, &swarm, &name).await, "a stranger's authority");
    }
}
