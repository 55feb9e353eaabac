//! Streams that are kept: dialled again when they break, given up when the other side falls silent. Those of sessions and those of training.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tonic::Streaming;

use crate::training::Message;
use crate::training::check::MessageError;

/// First and longest pause before dialling again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1000));

/// Pauses between the streams to one place: they grow while a stream ends at once.
pub(crate) struct Redial(Duration);

impl Default for Redial {
    fn default() -> Self {
        Self(REDIAL.0)
    }
}

impl Redial {
    /// Waits after a stream that began then.
    pub(crate) async fn pause(&mut self, began: Instant) {
        sleep(self.next(began.elapsed())).await;
    }

    fn next(&mut self, lasted: Duration) -> Duration {
        let pause = if lasted > REDIAL.1 { REDIAL.0 } else { self.0 };
        self.0 = (pause * 2).min(REDIAL.1);
        pause
    }
}

/// Makes something of a stream within `limit`; `what` is how it is called.
pub(crate) async fn within<T, E: std::error::Error>(
    limit: Duration,
    what: &str,
    made: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(limit, made).await {
        Err(_) => Err(format!("{what} took too long")),
        Ok(made) => made.map_err(|error| chain(&error)),
    }
}

/// When the other side was heard. Time in which this process did not run, or did not read, says nothing about the other one.
pub(crate) struct Silence {
    ping: Duration,
    limit: Duration,
    heard: Instant,
    ticked: Instant,
}

impl Silence {
    /// Nothing for longer than `limit` is too long. It is asked every `ping`.
    pub(crate) fn new(ping: Duration, limit: Duration) -> Self {
        let now = Instant::now();
        Self { ping, limit, heard: now, ticked: now }
    }

    /// When to ask and to ping.
    pub(crate) fn ticks(&self) -> Interval {
        let mut ticks = interval(self.ping);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    pub(crate) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Why the stream is given up, if it was silent for too long. `full`: what was heard last is not taken yet.
    pub(crate) fn tick(&mut self, full: bool) -> Option<String> {
        self.tick_at(Instant::now(), full)
    }

    fn tick_at(&mut self, now: Instant, full: bool) -> Option<String> {
        let late = (now - self.ticked).saturating_sub(self.ping * 2);
        self.ticked = now;
        self.heard = if full { now } else { (self.heard + late).min(now) };
        let silent = now - self.heard;
        (silent > self.limit).then(|| format!("silent for {} ms", silent.as_millis()))
    }
}

/// One stream of training in both directions, from its hello to its end; why it ended. What is said here is `wrapped` for `outgoing`, what is
/// heard `told` to `events`.
///
/// # Errors
/// When the other side says what makes no sense.
pub(crate) async fn converse<Said: Message, Heard: Message, T, E>(
    mut incoming: Streaming<Heard::Wire>,
    (outgoing, wrapped): (&mpsc::Sender<T>, impl Fn(Said::Wire) -> T),
    queue: &mut mpsc::Receiver<Said>,
    mut silence: Silence,
    (events, told): (&mpsc::Sender<E>, impl Fn(Heard) -> Result<E, MessageError>),
) -> Result<String, MessageError> {
    let mut pings = silence.ticks();
    loop {
        tokio::select! {
            biased;
            said = incoming.message() => match said {
                Err(status) => return Ok(chain(&status)),
                Ok(None) => return Ok("the other side closed the stream".to_owned()),
                Ok(Some(message)) => {
                    silence.heard();
                    if let Some(heard) = Heard::from_wire(message)?
                        && events.send(told(heard)?).await.is_err()
                    {
                        return Ok("stopped".to_owned());
                    }
                }
            },
            said = queue.recv() => {
                let Some(said) = said else { return Ok("hung up".to_owned()) };
                match timeout(silence.limit, outgoing.send(wrapped(said.to_wire()))).await {
                    Ok(Ok(())) => {}
                    _ => return Ok("the other side does not read".to_owned()),
                }
            },
            _ = pings.tick() => {
                if let Some(why) = silence.tick(false) {
                    return Ok(why);
                }
                // With some on their way already, another one says nothing new.
                let _ = outgoing.try_send(wrapped(Said::alive()));
            },
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn pauses_grow_while_streams_end_at_once_and_begin_anew_after_one_that_lasted() {
        let mut redial = Redial::default();
        let waited = [0, 0, 900, 0, 0, 0, 0, 1001, 0].map(|lasted| redial.next(ms(lasted)));
        assert_eq!(waited, [50, 100, 200, 400, 800, 1000, 1000, 50, 100].map(ms));
    }

    #[test]
    fn time_in_which_this_process_stood_still_is_no_silence_of_the_other() {
        let mut silence = Silence::new(ms(200), ms(650));
        let begin = silence.heard;
        let mut tick = |after: u64, full| silence.tick_at(begin + ms(after), full);
        for after in [0, 200, 400, 600] {
            assert_eq!(tick(after, false), None);
        }
        assert_eq!(tick(800, false).as_deref(), Some("silent for 800 ms"));
        assert_eq!(tick(1000, true), None, "what it said is not taken yet");
        assert_eq!(tick(6000, false), None, "this process did not run for 5 s");
        assert_eq!(tick(6200, false), None);
        assert!(tick(6400, false).is_some());
    }
}
