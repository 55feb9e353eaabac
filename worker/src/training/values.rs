//! Values that travel as bytes, little-endian, and calls to the peers that have them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::training::{Mate, StageId, Step};
use dunlin_swarm::PeerName;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{Pieces, PullError, dial_stage};
use dunlin_wire::{LinksConfig, proto};
use tonic::transport::Channel;

/// A mate that gives nothing for so long is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why something could not be got of mates.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Who did not give it, if it was somebody else.
    pub mate: Option<PeerName>,
    /// What happened.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mate {
            Some(mate) => write!(f, "{mate}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self { mate: None, why }
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// Connections that are kept; with more, all are made anew.
const OPEN_MAX: usize = 256;

/// A client of a peer.
pub type StageClient = proto::train_stage_client::TrainStageClient<Channel>;

/// Something that has a fixed number of bytes on the wire.
pub trait Word<const N: usize>: Copy {
    /// As it travels.
    fn to_bytes(self) -> [u8; N];
    /// From what travelled.
    fn from_bytes(bytes: [u8; N]) -> Self;
}

macro_rules! word {
    ($($kind:ty: $bytes:literal),*) => {$(
        impl Word<$bytes> for $kind {
            fn to_bytes(self) -> [u8; $bytes] {
                self.to_le_bytes()
            }

            fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self::from_le_bytes(bytes)
            }
        }
    )*};
}

word!(u32: 4, f32: 4, i64: 8);

/// Values as they travel.
pub fn to_bytes<const N: usize, T: Word<N>>(values: &[T]) -> Bytes {
    let mut out = Vec::with_capacity(values.len() * N);
    for value in values {
        out.extend_from_slice(&value.to_bytes());
    }
    out.into()
}

/// Values that travelled, whole ones only.
pub fn from_bytes<const N: usize, T: Word<N>>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(|word| T::from_bytes(*word))
}

/// Connections to peers, made when they are first needed and kept until a call on them fails.
#[derive(Clone)]
pub struct Clients {
    links: LinksConfig,
    /// The largest call or answer to one.
    call_bytes_max: usize,
    open: Arc<Mutex<BTreeMap<PeerName, StageClient>>>,
}

impl Clients {
    /// No connections yet.
    pub fn new(links: LinksConfig, call_bytes_max: usize) -> Self {
        Self { links, call_bytes_max, open: Arc::default() }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<PeerName, StageClient>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of `mate`.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn of(&self, mate: &Mate) -> Result<StageClient, String> {
        if let Some(client) = self.open().get(&mate.name) {
            return Ok(client.clone());
        }
        let client = dial_stage(&self.links, mate.name.as_str(), &mate.addr, self.call_bytes_max).await?;
        let mut open = self.open();
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(mate.name.clone(), client.clone());
        Ok(client)
    }

    /// A call failed: the next one begins with a new connection.
    pub fn forget(&self, name: &PeerName) {
        self.open().remove(name);
    }

    /// Only these peers are still there.
    pub fn retain(&self, keep: impl Fn(&PeerName) -> bool) {
        self.open().retain(|name, _| keep(name));
    }

    /// Asks a mate for values, which come piece by piece; nothing for `patience` is a failure.
    ///
    /// # Errors
    /// What it says, or that it cannot be reached.
    pub async fn ask(
        &self,
        mate: &Mate,
        request: proto::PullRequest,
        patience: Duration,
    ) -> Result<Pieces, PullError> {
        let mut client = self.of(mate).await.map_err(PullError::Broken)?;
        Pieces::ask(&mut client, request, patience).await
    }

    /// The end of an attempt to get something of a mate: when it broke, the next begins with a new connection. A refusal came over a sound one,
    /// which others may be using.
    ///
    /// # Errors
    /// The same with the mate's name.
    pub fn blame<T>(&self, mate: &Mate, outcome: Result<T, PullError>) -> Result<T, Fault> {
        outcome.map_err(|error| {
            if matches!(error, PullError::Broken(_)) {
                self.forget(&mate.name);
            }
            Fault { mate: Some(mate.name.clone()), why: error.into() }
        })
    }

    /// Pulls `count` values from a mate. With the step that they are of.
    ///
    /// # Errors
    /// Which mate failed, and how.
    pub async fn pull<const N: usize, T: Word<N>>(
        &self,
        mate: &Mate,
        request: proto::PullRequest,
        count: usize,
    ) -> Result<(Step, Vec<T>), Fault> {
        let pulled = async {
            let mut pieces = self.ask(mate, request, PATIENCE).await?;
            let (mut step, mut values) = (0, Vec::with_capacity(count));
            while let Some(piece) = pieces.next().await? {
                step = piece.step;
                values.extend(from_bytes::<N, T>(&piece.data));
                if values.len() > count {
                    return Err(PullError::Broken("more values than asked for".to_owned()));
                }
            }
            if values.len() != count {
                return Err(PullError::Broken(format!("{} of {count} values came", values.len())));
            }
            Ok((step, values))
        };
        self.blame(mate, pulled.await)
    }
}

/// A question for this of a stage.
pub fn asking(stage: StageId, what: What) -> proto::PullRequest {
    proto::PullRequest { stage, what: Some(what), microbatches: Vec::new() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use dunlin_wire::train::{StageInbound, TrainStageService};
    use dunlin_wire::{Caller, Role};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tonic::Status;
    use tonic::transport::Server;

    use super::*;

    /// A mate that answers each pull with the next of `answers`, or with nothing at all.
    async fn mate(answers: Vec<Option<Status>>) -> Mate {
        let (calls, mut called) = mpsc::channel(4);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let router = Server::builder().add_service(TrainStageService::service(calls, 1 << 20, 4));
        let caller = Caller::unproven(Role::Peer, "caller");
        let incoming = dunlin_wire::incoming_in_plain_text(listener, caller).unwrap();
        tokio::spawn(router.serve_with_incoming(incoming));
        tokio::spawn(async move {
            for answer in answers {
                let Some(StageInbound::Pull(_, _, pieces)) = called.recv().await else { panic!() };
                if let Some(status) = answer {
                    pieces.send(Err(status)).await.unwrap();
                }
            }
        });
        Mate { name: "mate".into(), addr, host: String::new() }
    }

    #[tokio::test]
    async fn a_refusal_says_nothing_against_the_connection_that_it_came_over() {
        let broken = |status: Status| (Some(status), false);
        let refused = |status: Status| (Some(status), true);
        let cases = [
            refused(Status::failed_precondition("this peer is not at that step")),
            refused(Status::permission_denied("nobody's mate")),
            broken(Status::unavailable("the peer ends")),
            (None, false),
        ];
        let mate = mate(cases.iter().map(|(answer, _)| answer.clone()).collect()).await;
        let hello = proto::Hello { name: "caller".to_owned(), ..proto::Hello::default() };
        let clients = Clients::new(LinksConfig::new(hello, None), 1 << 20);
        for (answer, keeps) in cases {
            let pulled = clients.pull::<4, f32>(&mate, asking(0, What::AllSums(1)), 3).await;
            assert_eq!(pulled.unwrap_err().mate.as_ref(), Some(&mate.name));
            assert_eq!(clients.open().contains_key(&mate.name), keeps, "{answer:?}");
        }
    }
}
