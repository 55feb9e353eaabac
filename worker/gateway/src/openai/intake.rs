//! The way in: bodies are read, parsed and turned into tokens beside the runtime, a few at a time.
//!
//! Both threads of the runtime carry heartbeats and running streams; a long text in a template or a tokenizer would hold them up for
//! seconds. So this is done on other threads. Long bodies have a thread of their own, so that short ones never wait for them. How many
//! requests are here at once is bounded, and with that the memory of their bodies; whoever comes too many is told to come again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;

/// Largest request.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Of a body that is refused so much is read.
const DRAINED_MAX: usize = 8 * BODY_BYTES_MAX;
/// Bodies up to this length are short.
const SHORT_BYTES: usize = 64 << 10;
/// A body arrives within this time.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Nobody waits for a thread for longer.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// Requests of one kind.
struct Lane {
    /// What may be here at once, at work or waiting.
    places: Arc<Semaphore>,
    /// What may be at work.
    threads: Arc<Semaphore>,
}

impl Lane {
    fn new(places: usize, threads: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), threads: Arc::new(Semaphore::new(threads)) }
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| ApiError::busy("too many requests arrive at once; try again later", 1))
    }

    /// Runs `work` beside the runtime, when it is its turn.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let late = || ApiError::unavailable("the requests before this one take too long; try again later", 5);
        let thread = timeout(WAIT_LIMIT, Arc::clone(&self.threads).acquire_owned()).await;
        // The semaphore is never closed.
        let thread = thread.map_err(|_| late())?.map_err(|_| late())?;
        let done = tokio::task::spawn_blocking(move || {
            let out = work();
            drop(thread);
            out
        });
        done.await
            .unwrap_or_else(|error| Err(ApiError::internal(format!("the request was not read: {error}"))))
    }
}

/// Both lanes.
pub struct Intake {
    short: Lane,
    long: Lane,
}

impl Default for Intake {
    fn default() -> Self {
        Self { short: Lane::new(1024, 2), long: Lane::new(8, 1) }
    }
}

impl Intake {
    /// Reads the body of a request and gives it to `work`, which may take long.
    ///
    /// # Errors
    /// What `work` says; or that the body is too large or does not arrive, or that there are too many requests.
    pub async fn take<T: Send + 'static>(
        &self,
        request: Request,
        work: impl FnOnce(&HeaderMap, &Bytes) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (head, body) = request.into_parts();
        // Nothing is known of a body that is sent in chunks.
        let length = body.size_hint().exact().map_or(BODY_BYTES_MAX as u64, |length| length);
        if length > BODY_BYTES_MAX as u64 {
            drain(body.into_data_stream()).await;
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        let lane = if length <= SHORT_BYTES as u64 { &self.short } else { &self.long };
        let _place = match lane.enter() {
            Ok(place) => place,
            Err(busy) => {
                drain(body.into_data_stream()).await;
                return Err(busy);
            }
        };
        let read = timeout(READ_LIMIT, read(body, length as usize)).await;
        let bytes = read.map_err(|_| ApiError::too_slow(READ_LIMIT))??;
        lane.run(move || work(&head.headers, &bytes)).await
    }
}

/// Reads a body that may come in chunks.
async fn read(body: Body, most: usize) -> Result<Bytes, ApiError> {
    let mut pieces = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| ApiError::invalid("", format!("the body cannot be read: {e}")))?;
        if bytes.len() + piece.len() > most {
            drain(pieces).await;
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// Reads what is left of a body that nobody wants: whoever still sends would find the connection broken, and never see the answer.
async fn drain(body: BodyDataStream) {
    let mut left = DRAINED_MAX;
    let enough = body.take_while(|piece| {
        left = left.saturating_sub(piece.as_ref().map_or(left, Bytes::len));
        std::future::ready(left > 0)
    });
    // What takes longer is cut off.
    let _ = timeout(READ_LIMIT, enough.for_each(|_| std::future::ready(()))).await;
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::body::Body;
    use axum::http::StatusCode;
    use futures::future::join_all;

    use super::*;

    fn request(bytes: usize) -> Request {
        Request::new(Body::from(vec![b' '; bytes]))
    }

    #[tokio::test]
    async fn long_bodies_wait_for_one_another_and_short_ones_for_none_of_them() {
        let intake = Arc::new(Intake::default());
        let (sender, receiver) = mpsc::channel::<()>();
        let receiver = Arc::new(std::sync::Mutex::new(receiver));
        let (began, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let long = |number: usize| {
            let (intake, receiver, began) = (Arc::clone(&intake), Arc::clone(&receiver), began.clone());
            async move {
                let work = move |_: &HeaderMap, bytes: &Bytes| {
                    began.send(number).unwrap();
                    receiver.lock().unwrap().recv().unwrap();
                    Ok(bytes.len())
                };
                intake.take(request(1 << 20), work).await
            }
        };
        let waiting: Vec<_> = (0..8).map(|number| tokio::spawn(long(number))).collect();
        begun.recv().await.unwrap();
        // All places are taken as soon as every request has been looked at.
        while intake.long.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = long(8).await.unwrap_err();
        assert_eq!((refused.status, refused.retry_after_s), (StatusCode::TOO_MANY_REQUESTS, Some(1)));
        for _ in 0..100 {
            assert_eq!(intake.take(request(10), |_, bytes| Ok(bytes.len())).await, Ok(10));
        }
        assert!(begun.try_recv().is_err(), "one at a time");
        (0..8).for_each(|_| sender.send(()).unwrap());
        let done = join_all(waiting).await;
        assert!(done.into_iter().all(|done| done.unwrap() == Ok(1 << 20)));
        assert_eq!(intake.long.places.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_or_never_arrives_is_refused() {
        let intake = Intake::default();
        let answer = |request| intake.take(request, |_, bytes| Ok(bytes.len()));
        let large = answer(request(BODY_BYTES_MAX + 1)).await.unwrap_err();
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
        let endless = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(answer(Request::new(endless)).await.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
        let pieces = (0..9).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 20])));
        let chunked = Body::from_stream(futures::stream::iter(pieces));
        assert_eq!(answer(Request::new(chunked)).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(intake.long.places.available_permits(), 8);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_frees_its_thread() {
        let intake = Intake::default();
        for _ in 0..3 {
            let failed = intake.take::<()>(request(1), |_, _| panic!("a bug")).await.unwrap_err();
            assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
        }
        assert_eq!(intake.take(request(1), |_, _| Ok(7)).await, Ok(7));
    }
}
