//! The streams of peers and trainers: who speaks on which, and the one place where a stream ends.
//!
//! A stream can end in three ways: its other side closes it or falls silent, its queue takes nothing more, or a newer stream of the same name
//! replaces it. Any two of these can happen to one stream, in any order. [`Streams`] gives the name of whoever is lost with a stream exactly once, and
//! never when a newer stream of that name is open.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;
use dunlin_wire::train::StreamId;
use dunlin_wire::training::ToMember;
use tokio::sync::mpsc;

/// All open streams.
#[derive(Default)]
pub struct Streams {
    open: BTreeMap<StreamId, Stream>,
    /// The present stream of everybody.
    present: BTreeMap<PeerName, StreamId>,
}

struct Stream {
    sayer: mpsc::Sender<ToMember>,
    who: Who,
}

/// Who speaks on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its name: one life of a process.
    pub name: PeerName,
    /// Of one that drives microbatches, the digest of the tokens that it draws them from; otherwise it computes a stage.
    pub data: Option<String>,
}

impl Streams {
    /// Somebody is here. What an older stream of the same name still says is of the past: it ends, and nobody is lost with it.
    pub fn opened(&mut self, id: StreamId, who: Who, sayer: mpsc::Sender<ToMember>) {
        if let Some(older) = self.present.insert(who.name.clone(), id) {
            self.open.remove(&older);
        }
        self.open.insert(id, Stream { sayer, who });
    }

    /// Who speaks on a stream, if it is open.
    pub fn who(&self, id: StreamId) -> Option<&Who> {
        self.open.get(&id).map(|stream| &stream.who)
    }

    /// Everybody who is here.
    pub fn all(&self) -> Vec<Who> {
        self.open.values().map(|stream| stream.who.clone()).collect()
    }

    /// A stream has ended or makes no sense. Who is lost with it.
    #[must_use = "the conductor has to hear who is lost"]
    pub fn end(&mut self, id: StreamId) -> Option<PeerName> {
        let name = self.open.remove(&id)?.who.name;
        // An open stream is the present one of its name: whatever replaced it removed it.
        self.present.remove(&name).map(|_| name)
    }

    /// The conductor wants nothing more to do with somebody, and knows it.
    pub fn hang_up(&mut self, name: &PeerName) {
        if let Some(id) = self.present.get(name).copied() {
            let _known = self.end(id);
        }
    }

    /// Says something. A stream that takes nothing more ends; the same name is then the return value.
    #[must_use = "the conductor has to hear who is lost"]
    pub fn say(&mut self, name: &PeerName, message: ToMember) -> Option<PeerName> {
        let id = *self.present.get(name)?;
        let stream = self.open.get(&id)?;
        if stream.sayer.try_send(message).is_ok() { None } else { self.end(id) }
    }

    /// All streams end, and the conductor knows it.
    pub fn clear(&mut self) {
        self.open.clear();
        self.present.clear();
    }
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::training::ToPeer;
    use dunlin_swarm::PeerName;
    use dunlin_wire::train::StreamId;
    use dunlin_wire::training::ToMember;
    use tokio::sync::mpsc;

    use super::{Streams, Who};

    const SAID: ToMember = ToMember::Peer(ToPeer::Retire);

    fn say(streams: &mut Streams) -> Option<PeerName> {
        streams.say(&"a".into(), SAID)
    }

    fn open(streams: &mut Streams, id: StreamId) -> mpsc::Receiver<ToMember> {
        let (sayer, queue) = mpsc::channel(2);
        streams.opened(id, Who { name: "a".into(), data: None }, sayer);
        queue
    }

    #[test]
    fn whoever_is_lost_is_named_once_whether_its_queue_or_its_stream_ends_first() {
        // The stream's end is heard first.
        let mut streams = Streams::default();
        let queue = open(&mut streams, 1);
        assert_eq!(streams.end(1), Some("a".into()));
        drop(queue);
        assert_eq!((say(&mut streams), streams.end(1)), (None, None));
        // There is something to say first.
        drop(open(&mut streams, 2));
        assert_eq!(say(&mut streams), Some("a".into()));
        assert_eq!((say(&mut streams), streams.end(2)), (None, None));
        // It lives, but reads nothing.
        let _queue = open(&mut streams, 3);
        let said: Vec<_> = (0..4).map(|_| say(&mut streams)).collect();
        assert_eq!(said, [None, None, Some("a".into()), None]);
    }

    #[test]
    fn nobody_is_lost_with_a_stream_that_a_newer_one_replaced() {
        let mut streams = Streams::default();
        drop(open(&mut streams, 1));
        let mut queue = open(&mut streams, 2);
        assert_eq!(streams.end(1), None);
        assert_eq!(say(&mut streams), None);
        assert_eq!(queue.try_recv(), Ok(SAID));
        assert_eq!(streams.end(2), Some("a".into()));
        // The conductor knows whom it hangs up on.
        let mut queue = open(&mut streams, 3);
        streams.hang_up(&"a".into());
        assert_eq!((streams.end(3), say(&mut streams)), (None, None));
        assert_eq!(queue.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
