//! The HTTP client: how long it waits, how often it tries, and what it does not put up with.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use ureq::http::header::{CONTENT_LENGTH, RETRY_AFTER};
use ureq::http::request::Builder;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, Error, SendBody};

use crate::error::StoreError;

/// Redirects that are followed.
const REDIRECTS_MAX: u32 = 5;
/// Longest answer that is read for what it says.
const ANSWER_MAX: u64 = 1 << 16;

/// What is put up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for a connection.
    pub connect: Duration,
    /// Time until an answer begins, once the request is sent.
    pub response: Duration,
    /// Longest time without a byte, either way.
    pub silence: Duration,
    /// Time for one file, either way.
    pub transfer: Duration,
    /// Fewest bytes in so long.
    pub pace: (u64, Duration),
    /// Longest file.
    pub bytes_max: u64,
    /// How often a request is made while what stands in its way may pass.
    pub attempts: u32,
    /// Pause before the second of them; each further one is [`PAUSE_GROWTH`] times as long.
    pub pause: Duration,
    /// Longest pause that a server may ask for.
    pub pause_max: Duration,
}

/// How pauses grow: 10 s in all.
const PAUSE_GROWTH: u32 = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            response: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            transfer: Duration::from_secs(24 * 3600),
            pace: (64 << 10, Duration::from_secs(60)),
            bytes_max: 1 << 42,
            attempts: 4,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// How long to wait after attempt `attempt`, of which the first is 0; nothing when there is no other. `asked`: what the server asked for.
    pub(crate) fn pause_after(&self, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        let own = self.pause * PAUSE_GROWTH.saturating_pow(attempt);
        let pause = asked.map_or(own, |asked| asked.max(own));
        (attempt + 1 < self.attempts && asked.is_none_or(|asked| asked <= self.pause_max)).then_some(pause)
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// `bytes` of a file, from `from` on.
    File {
        file: &'a File,
        from: u64,
        bytes: u64,
    },
}

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    pub(crate) limits: Limits,
}

impl Client {
    /// `private`: what requests carry is for one host, and goes to no other.
    pub(crate) fn new(limits: Limits, private: bool) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(if private { 0 } else { REDIRECTS_MAX })
            .timeout_connect(Some(limits.connect))
            .timeout_recv_response(Some(limits.response))
            .timeout_per_read(Some(limits.silence))
            .timeout_per_write(Some(limits.silence))
            .timeout_send_body(Some(limits.transfer))
            .timeout_recv_body(Some(limits.transfer));
        Self { agent: agent.build().into(), limits }
    }

    /// The answer, whatever it is, after as many attempts as may help. `request` makes one for each.
    pub(crate) fn send(
        &self,
        request: &dyn Fn() -> io::Result<Builder>,
        payload: Payload<'_>,
    ) -> Result<Response<Body>, StoreError> {
        let mut attempt = 0;
        loop {
            let answered = self.try_once(request()?, payload)?;
            let asked = match &answered {
                Ok(answer) if !may_pass(answer.status()) => None,
                Ok(answer) => Some(retry_after(answer)),
                // A server that breaks off in the middle of its answer is gone, like one that breaks the connection.
                Err(
                    Error::Io(_)
                    | Error::HostNotFound
                    | Error::ConnectionFailed
                    | Error::Protocol(_)
                    | Error::BodyStalled,
                ) => Some(None),
                // The time for an answer is long enough to be spent once.
                Err(_) => None,
            };
            match asked.and_then(|asked| self.limits.pause_after(attempt, asked)) {
                Some(pause) => std::thread::sleep(pause),
                None => return answered.map_err(|error| self.failure(error)),
            }
            attempt += 1;
        }
    }

    /// The outer error is one of this machine, which another attempt does not change.
    fn try_once(
        &self,
        request: Builder,
        payload: Payload<'_>,
    ) -> Result<Result<Response<Body>, Error>, StoreError> {
        let wrong = |error| StoreError::Refused(format!("it cannot be asked for: {error}"));
        // Object storage takes no body of unknown length.
        let (length, mut content): (u64, Box<dyn Read + '_>) = match payload {
            Payload::Nothing => return Ok(self.agent.run(request.body(()).map_err(wrong)?)),
            Payload::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes)),
            Payload::File { mut file, from, bytes } => {
                file.seek(SeekFrom::Start(from))?;
                (bytes, Box::new(file.take(bytes)))
            }
        };
        let request = request.header(CONTENT_LENGTH, length).body(SendBody::from_reader(&mut *content));
        Ok(self.agent.run(request.map_err(wrong)?))
    }

    pub(crate) fn failure(&self, error: Error) -> StoreError {
        let Limits { connect, response, silence, .. } = self.limits;
        match error {
            Error::TooManyRedirects => StoreError::Refused(format!(
                "the server redirects in a circle, or more than {REDIRECTS_MAX} times; use the address that it leads to"
            )),
            Error::BadUri(_) | Error::Http(_) => {
                StoreError::Refused(format!("it cannot be asked for: {error}"))
            }
            Error::Timeout(ureq::Timeout::Connect) => StoreError::Unavailable(format!(
                "there is no connection within {} s; can the server be reached from here?",
                connect.as_secs()
            )),
            Error::Timeout(ureq::Timeout::PerRead | ureq::Timeout::PerWrite) => {
                StoreError::Unavailable(format!("the server was silent for {} s", silence.as_secs()))
            }
            Error::Timeout(_) => {
                StoreError::Unavailable(format!("the server does not answer within {} s", response.as_secs()))
            }
            Error::HostNotFound => {
                StoreError::Unavailable("no server of this name is found; is it spelled right?".to_owned())
            }
            other => StoreError::Unavailable(other.to_string()),
        }
    }
}

/// Whether another attempt may be answered otherwise.
pub(crate) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long the server asks to be left alone.
pub(crate) fn retry_after(answer: &Response<Body>) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?;
    after(text, Timestamp::now())
}

/// Seconds, or a date.
fn after(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    let seconds = date.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// What an answer says, as much of it as is read.
pub(crate) fn text(mut answer: Response<Body>) -> Result<String, StoreError> {
    let mut bytes = Vec::new();
    let read = answer.body_mut().as_reader().take(ANSWER_MAX).read_to_end(&mut bytes);
    read.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_a_server_may_ask_for_longer_ones_but_not_for_any() {
        let limits = Limits::default();
        let seconds = |s: f64| Some(Duration::from_secs_f64(s));
        let own: Vec<_> = (0..4).map(|attempt| limits.pause_after(attempt, None)).collect();
        assert_eq!(own, [seconds(0.5), seconds(2.0), seconds(8.0), None]);
        assert_eq!(limits.pause_after(1, seconds(5.0)), seconds(5.0));
        assert_eq!(limits.pause_after(2, seconds(5.0)), seconds(8.0));
        assert_eq!(limits.pause_after(0, seconds(3600.0)), None);
        assert_eq!(limits.pause_after(3, seconds(0.0)), None);
    }

    #[test]
    fn a_server_asks_for_seconds_or_names_a_date() {
        let now = Timestamp::from_second(1_445_412_470).unwrap();
        assert_eq!(after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(after("Wed, 21 Oct 2015 07:27:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(after("soon", now), None);
        assert_eq!(after("-1", now), None);
    }
}
