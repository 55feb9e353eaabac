//! Questions to the processes of a local swarm. Each stage is asked by a task of its own: one that does not answer holds nobody else up.

use std::time::Duration;

use dunlin_swarm::{Epoch, Topology};
use dunlin_wire::proto::control_client::ControlClient;
use dunlin_wire::{LinksConfig, links, proto, topology};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;

/// How often processes are asked how they are.
pub const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(1000);

type Client = ControlClient<Channel>;

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
    async fn stage(&mut self, plan: &Topology, known: Epoch) -> Option<proto::Status> {
        let order = (plan.epoch != known).then(|| topology::assignment(plan));
        self.ask(|mut client| async move {
            match order {
                Some(order) => client.assign(order).await,
                None => client.get_status(proto::StatusRequest {}).await,
            }
        })
        .await
    }

    /// Asks a gateway how it is, and gives it the plan, if there is one, which it ignores if it knows it.
    pub async fn gateway(&mut self, plan: &Topology) -> Option<proto::Status> {
        let order = (plan.epoch != 0).then(|| topology::push(plan));
        self.ask(|mut client| async move {
            match order {
                Some(order) => client.push_topology(order).await,
                None => client.get_status(proto::StatusRequest {}).await,
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
pub fn attend(
    mut control: Control,
    plan: watch::Receiver<Topology>,
) -> watch::Receiver<Option<proto::Status>> {
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
