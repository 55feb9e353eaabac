//! Operator (or local supervisor) to stages and gateways.

use std::sync::Arc;

use dunlin_swarm::Topology;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};
use tracing::warn;

use crate::access::Rpc;
use crate::identity::Caller;
use crate::{proto, topology};

/// A question with the way back for its answer.
#[derive(Debug)]
pub struct ControlRequest {
    /// Role and name of the process that asks.
    pub caller: Caller,
    /// What is asked.
    pub question: Question,
    /// Where the answer goes.
    pub answer: oneshot::Sender<proto::Status>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// How are you?
    Status,
    /// Hold the layers that this topology gives to you.
    Assign(Topology),
    /// Route over this topology.
    PushTopology(Topology),
    /// Hand over and end.
    Drain {
        /// Milliseconds until the process ends in any case.
        deadline_ms: u64,
    },
}

/// The server: questions go to one task.
#[derive(Clone)]
pub struct ControlService {
    questions: mpsc::Sender<ControlRequest>,
}

/// The tonic service.
pub type ControlServer = proto::control_server::ControlServer<ControlService>;

impl ControlService {
    /// Questions go to `questions`; the service to add to a server.
    #[must_use]
    pub fn service(questions: mpsc::Sender<ControlRequest>) -> ControlServer {
        ControlServer::from_arc(Arc::new(Self { questions }))
    }

    async fn ask(&self, caller: Caller, question: Question) -> Result<Response<proto::Status>, Status> {
        let (answer, reply) = oneshot::channel();
        let gone = |_| Status::unavailable("the process is about to end");
        self.questions.send(ControlRequest { caller, question, answer }).await.map_err(|_| gone(()))?;
        Ok(Response::new(reply.await.map_err(|_| gone(()))?))
    }
}

/// The topology of an order. One that is not sound is not obeyed; who gave it hears all the same how the process is.
fn sound(topology: Option<proto::Topology>) -> Option<Topology> {
    topology::from_wire(topology).map_err(|why| warn!(why, "a topology is not sound")).ok()
}

#[tonic::async_trait]
impl proto::control_server::Control for ControlService {
    async fn get_status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::Status>, Status> {
        let caller = Rpc::GetStatus.admit(&request)?;
        self.ask(caller, Question::Status).await
    }

    async fn assign(&self, request: Request<proto::Assignment>) -> Result<Response<proto::Status>, Status> {
        let caller = Rpc::Assign.admit(&request)?;
        let topology = sound(request.into_inner().topology);
        self.ask(caller, topology.map_or(Question::Status, Question::Assign)).await
    }

    async fn push_topology(
        &self,
        request: Request<proto::TopologyPush>,
    ) -> Result<Response<proto::Status>, Status> {
        let caller = Rpc::PushTopology.admit(&request)?;
        let topology = sound(request.into_inner().topology);
        self.ask(caller, topology.map_or(Question::Status, Question::PushTopology)).await
    }

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Result<Response<proto::Status>, Status> {
        let caller = Rpc::Drain.admit(&request)?;
        self.ask(caller, Question::Drain { deadline_ms: request.into_inner().deadline_ms }).await
    }
}
