//! Questions to the processes of a local swarm. Each stage is asked by a task of its own: one that does not answer holds nobody else up.

use std::sync::Arc;
use std::time::Duration;

use dunlin_swarm::{Epoch, Topology};
use dunlin_wire::proto::control_client::ControlClient;
use dunlin_wire::{LinksConfig, links, proto};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;

/// How often processes are asked how they are.
pub const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(1000);

type Client = ControlClient<Channel>;

/// A topology in the form in which it is sent.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Number of the topology; 0 for none yet.
    pub epoch: Epoch,
    /// The topology as JSON.
    pub json: Arc<str>,
}

impl Plan {
    /// Writes a topology down.
    ///
    /// # Errors
    /// When it has no form in JSON.
    pub fn of(topology: &Topology) -> serde_json::Result<Self> {
        Ok(Self { epoch: topology.epoch, json: serde_json::to_string(topology)?.into() })
    }
}

/// The control service of one process, over a connection that is made when needed and dropped when it fails.
pub struct Control {
    links: LinksConfig,
    name: String,
    addr: String,
    client: Option<Client>,
}

impl Control {
    /// Of the process `name` at `addr`.
    pub fn new(links: LinksConfig, name: &str, addr: String) -> Self {
        Self { links, name: name.to_owned(), addr, client: None }
    }

    /// Asks a stage how it is, and gives it the plan if it has another one.
    async fn stage(&mut self, plan: &Plan, known: Epoch) -> Option<proto::Status> {
        let (epoch, topology) = (plan.epoch, plan.json.to_string());
        self.ask(|mut client| async move {
            if epoch == known {
                client.get_status(proto::StatusRequest {}).await
            } else {
                client.assign(proto::Assignment { epoch, topology }).await
            }
        })
        .await
    }

    /// Asks a gateway how it is, and gives it the plan, if there is one, which it ignores if it knows it.
    pub async fn gateway(&mut self, plan: &Plan) -> Option<proto::Status> {
        let (epoch, topology) = (plan.epoch, plan.json.to_string());
        self.ask(|mut client| async move {
            if epoch == 0 {
                client.get_status(proto::StatusRequest {}).await
            } else {
                client.push_topology(proto::TopologyPush { topology }).await
            }
        })
        .await
    }

    async fn ask<F>(&mut self, question: impl FnOnce(Client) -> F) -> Option<proto::Status>
    where
        F: Future<Output = Result<tonic::Response<proto::Status>, tonic::Status>>,
    {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let dial = links::connect(&self.links, &self.name, &self.addr);
                let channel = timeout(ANSWER, dial).await.ok()?.ok()?;
                self.client.insert(Client::new(channel)).clone()
            }
        };
        if let Ok(Ok(response)) = timeout(ANSWER, question(client)).await {
            return Some(response.into_inner());
        }
        self.client = None;
        None
    }
}

/// Asks a stage again and again, and gives it each new plan, until nobody wants to know. What it said last is in the channel that is
/// returned: nothing before its first answer, and after a question that it did not answer.
pub fn attend(mut control: Control, plan: watch::Receiver<Plan>) -> watch::Receiver<Option<proto::Status>> {
    let (said, status) = watch::channel(None);
    tokio::spawn(async move {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = 0;
        loop {
            tokio::select! {
                () = said.closed() => return,
                _ = ticks.tick() => {}
            }
            let now = plan.borrow().clone();
            let answer = control.stage(&now, known).await;
            if let Some(status) = &answer {
                known = status.epoch;
            }
            said.send_replace(answer);
        }
    });
    status
}
