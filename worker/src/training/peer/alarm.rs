//! Who is told that memory has changed by itself.

use tokio::sync::mpsc;

use super::event::Event;

/// Where it is told that memory has changed by itself.
#[derive(Clone)]
pub struct Alarm(Option<mpsc::Sender<Event>>);

impl Alarm {
    /// Tells a peer.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self(Some(events))
    }

    /// Tells nobody: whoever has no conductor.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Memory has changed.
    pub async fn raise(&self, what: String) {
        if let Some(events) = &self.0 {
            // The receiver is gone only when the process ends.
            let _ = events.send(Event::Corrupt(what)).await;
        }
    }

    /// The same where nothing may wait.
    pub fn raise_later(&self, what: String) {
        let alarm = self.clone();
        tokio::spawn(async move { alarm.raise(what).await });
    }

    /// The same from a thread that may wait.
    pub fn raise_blocking(&self, what: String) {
        if let Some(events) = &self.0 {
            let _ = events.blocking_send(Event::Corrupt(what));
        }
    }
}
