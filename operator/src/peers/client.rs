//! mTLS connections to workers. A connection is made when first used and made anew after it breaks.

use std::time::Duration;

use dunlin_swarm::timing::DRAIN_ON_NOTICE;
use dunlin_swarm::{LAYERS_MAX, Layers, NumericsClass, PEERS_MAX, Topology};
use dunlin_wire::Role;
use dunlin_wire::proto::{self, control_client::ControlClient, train_client::TrainClient};
use dunlin_wire::{convert, topology};
use tonic::transport::{Channel, Endpoint};

use super::observation::Observation;
use super::report::{WorkerReport, WorkerState};
use super::talk::{Answering, Connect, Talk, Target, WorkerQuestion};

/// Deadline of a connection attempt.
const CONNECT: Duration = Duration::from_millis(1000);
/// An idle connection is probed this often, so that a silent node is noticed between questions, too.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Largest status taken from a worker.
const STATUS_BYTES_MAX: usize = 1 << 20;
/// Versions of the arithmetic that one swarm can have at once.
const VERSIONS_MAX: usize = 16;
const DRAIN_MS: u64 = DRAIN_ON_NOTICE.as_millis() as u64;

/// Connects over gRPC.
pub struct GrpcConnector;

impl Connect for GrpcConnector {
    fn connect(&self, target: &Target) -> Result<Box<dyn Talk>, String> {
        let channel = channel(target)?;
        if target.role == Role::Conductor {
            let client = TrainClient::new(channel).max_decoding_message_size(STATUS_BYTES_MAX);
            return Ok(Box::new(ConductorTalk(client)));
        }
        let client = ControlClient::new(channel).max_decoding_message_size(STATUS_BYTES_MAX);
        Ok(Box::new(GrpcTalk { client, role: target.role }))
    }
}

struct GrpcTalk {
    client: ControlClient<Channel>,
    role: Role,
}

impl Talk for GrpcTalk {
    fn ask(&mut self, question: WorkerQuestion) -> Answering<'_> {
        Box::pin(async move {
            let answer = match (question, self.role) {
                (WorkerQuestion::Take(_, topology), role) => {
                    let topology = Topology::parse(&topology).map_err(|error| error.to_string())?;
                    match role {
                        Role::Gateway => self.client.push_topology(topology::push(&topology)).await,
                        _ => self.client.assign(topology::assignment(&topology)).await,
                    }
                }
                // Only a conductor can suspend a run, and only a conductor is asked to.
                (WorkerQuestion::Status | WorkerQuestion::Suspend, _) => {
                    self.client.get_status(proto::StatusRequest {}).await
                }
                (WorkerQuestion::Drain, _) => {
                    self.client.drain(proto::DrainRequest { deadline_ms: DRAIN_MS }).await
                }
            };
            answer.map(|status| report(status.into_inner())).map_err(|status| status.to_string())
        })
    }
}

struct ConductorTalk(TrainClient<Channel>);

impl Talk for ConductorTalk {
    fn ask(&mut self, question: WorkerQuestion) -> Answering<'_> {
        Box::pin(async move {
            let answer = match question {
                WorkerQuestion::Suspend => self.0.suspend(proto::SuspendRequest {}).await,
                _ => self.0.observe(proto::ObserveRequest {}).await,
            };
            let said = answer.map_err(|status| status.to_string())?.into_inner();
            let run = Observation::from_wire(said)?;
            Ok(WorkerReport { state: WorkerState::Ready, run: Some(run), ..WorkerReport::default() })
        })
    }
}

/// What a worker said, within bounds: it is not trusted to be sane.
fn report(status: proto::Status) -> WorkerReport {
    let state = match status.state() {
        proto::State::Starting => WorkerState::Starting,
        proto::State::Loading => WorkerState::Loading,
        proto::State::Ready => WorkerState::Ready,
        proto::State::Draining => WorkerState::Draining,
        proto::State::Failed => WorkerState::Failed,
    };
    let held = status.load.iter().flat_map(|load| &load.held);
    let sane = |l: &&proto::Layers| l.start < l.end && l.end <= LAYERS_MAX;
    let rate = status.load.as_ref().map_or(0.0, |load| load.rows_per_s_per_layer);
    let layers = |m: &proto::ModelFacts| m.layer_bytes.len() <= LAYERS_MAX as usize;
    let text = |text: &str| text.chars().take(1024).collect::<String>();
    WorkerReport {
        state,
        epoch: status.epoch,
        held: held.filter(sane).map(|l| Layers::new(l.start, l.end)).collect(),
        rows_per_s_per_layer: if rate.is_finite() { rate.max(0.0) } else { 0.0 },
        model: status.model.filter(layers).map(convert::model_sizes),
        model_digest: text(&status.model_digest),
        arithmetic: status.load.as_ref().and_then(|load| NumericsClass::from_number(load.arithmetic)),
        room_bytes: Some(status.room_bytes).filter(|room| *room > 0),
        error: status.problem.map(|p| (text(&p.reason), text(&p.message))),
        lost: status.lost.into_iter().take(PEERS_MAX).collect(),
        needed: status.needed.into_iter().take(VERSIONS_MAX).map(NumericsClass::from_number).collect(),
        run: None,
    }
}

/// A lazy channel that trusts the swarm's authority alone and expects `server_name`.
fn channel(target: &Target) -> Result<Channel, String> {
    let tls = target.identity.client(&target.server_name);
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

    use dunlin_wire::control::{self, ControlRequest, ControlService};
    use dunlin_wire::{Authority, Credentials, Validity, incoming};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tonic::transport::Server;

    use super::*;
    use crate::apply::certificates::{generate, names};
    use crate::testing::owner;

    const POD: &str = "smollm2-spot-x7x7x";

    /// A worker of `authority` that answers every question; its address and what it was asked.
    async fn worker(authority: &Authority) -> (String, mpsc::Receiver<control::Question>) {
        let names = names(&owner(), Role::Stage, POD);
        let tls = authority.issue(dunlin_wire::Role::Stage, &names, Validity::Authority).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (questions, mut asked) = mpsc::channel::<ControlRequest>(1);
        let (seen, sees) = mpsc::channel(16);
        let server = Server::builder().add_service(ControlService::service(questions));
        tokio::spawn(server.serve_with_incoming(incoming(listener, Credentials::fixed(tls).unwrap())));
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                seen.send(request.question).await.unwrap();
                let load = proto::Load {
                    // The second range is senseless and dropped.
                    held: vec![proto::Layers { start: 0, end: 10 }, proto::Layers { start: 9, end: 3 }],
                    rows_per_s_per_layer: 800.0,
                    ..proto::Load::default()
                };
                let status = proto::Status {
                    state: proto::State::Ready.into(),
                    epoch: 7,
                    load: Some(load),
                    model: Some(proto::ModelFacts {
                        layer_bytes: vec![5; 3],
                        embedding_bytes: 7,
                        head_bytes: 9,
                        ..Default::default()
                    }),
                    problem: Some(proto::Problem { reason: "ModelInvalid".into(), message: "x".into() }),
                    ..proto::Status::default()
                };
                request.answer.send(status).unwrap();
            }
        });
        (addr, sees)
    }

    fn target(addr: &str, role: Role, trusted: &Authority, ours: &Authority, server_name: &str) -> Target {
        let mut identity = ours
            .issue(dunlin_wire::Role::Operator, &names(&owner(), Role::Operator, ""), Validity::Authority)
            .unwrap();
        identity.authority = trusted.certificate().to_owned();
        let (addr, server_name) = (addr.to_owned(), server_name.to_owned());
        Target { name: POD.into(), role, addr, server_name, identity: Arc::new(identity) }
    }

    async fn ask(target: &Target, question: WorkerQuestion) -> Result<WorkerReport, String> {
        GrpcConnector.connect(target).unwrap().ask(question).await
    }

    #[tokio::test]
    async fn orders_reach_stages_and_gateways_in_their_own_way() {
        let swarm = generate(&owner()).unwrap();
        let (addr, mut asked) = worker(&swarm).await;
        let topology = Topology { epoch: 7, layers: 3, ..Topology::default() };
        let take = WorkerQuestion::Take(7, serde_json::to_string(&topology).unwrap().into());
        for (role, question, expected) in [
            (Role::Stage, take.clone(), control::Question::Assign(topology.clone())),
            (Role::Gateway, take, control::Question::PushTopology(topology)),
            (Role::Stage, WorkerQuestion::Drain, control::Question::Drain { deadline_ms: DRAIN_MS }),
            (Role::Stage, WorkerQuestion::Status, control::Question::Status),
        ] {
            let report = ask(&target(&addr, role, &swarm, &swarm, POD), question).await.unwrap();
            assert_eq!(asked.recv().await, Some(expected));
            assert_eq!((report.state, report.epoch), (WorkerState::Ready, 7));
            assert_eq!(report.held, [Layers::new(0, 10)]);
            assert_eq!(report.rows_per_s_per_layer, 800.0);
            assert_eq!(report.model.map(|m| m.layer_bytes), Some(vec![12, 5, 14]));
            assert_eq!(report.error, Some(("ModelInvalid".into(), "x".into())));
        }
    }

    #[tokio::test]
    async fn both_ends_must_be_of_the_swarm_and_the_worker_the_one_we_mean() {
        let (swarm, other) = (generate(&owner()).unwrap(), generate(&owner()).unwrap());
        let name = format!("{POD}.smollm2.dunlin");
        let (addr, _asked) = worker(&swarm).await;
        let reaches = async |trusted: &Authority, ours: &Authority, name: &str| {
            ask(&target(&addr, Role::Stage, trusted, ours, name), WorkerQuestion::Status).await.is_ok()
        };
        assert!(reaches(&swarm, &swarm, &name).await);
        assert!(!reaches(&swarm, &swarm, "smollm2-spot-other.smollm2.dunlin").await);
        assert!(!reaches(&swarm, &other, &name).await, "a stranger's certificate");
        assert!(!reaches(&other, &swarm, &name).await, "a stranger's authority");
    }
}
