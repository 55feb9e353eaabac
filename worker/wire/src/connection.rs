//! Incoming connections, each with its caller.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::Extensions;
use tonic::transport::server::{Connected, TlsConnectInfo};
use tracing::debug;

use crate::identity::{Caller, NoCaller};
use crate::tls::Credentials;

/// Callers that may take their time to prove who they are, at once; the others wait to be accepted.
const HANDSHAKES_MAX: usize = 256;
/// And how long each may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A machine without files for another connection gets some back within this.
const PAUSE: Duration = Duration::from_millis(100);

/// What all requests of one connection have in common.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// Known from the first request on: its certificate is parsed once.
    caller: Arc<OnceLock<Result<Caller, NoCaller>>>,
    refused: Arc<AtomicBool>,
}

impl Connection {
    /// The connection that a request came on.
    pub(crate) fn of(request: &Extensions) -> Option<&Self> {
        request.get::<TlsConnectInfo<Self>>().map(TlsConnectInfo::get_ref).or_else(|| request.get())
    }

    /// The other end of the connection that a request came on.
    pub(crate) fn caller(request: &Extensions) -> Result<Caller, NoCaller> {
        let connection = Self::of(request).ok_or(NoCaller::Missing)?;
        let read = || {
            let tls = request.get::<TlsConnectInfo<Self>>().ok_or(NoCaller::Missing)?;
            let certificates = tls.peer_certs().ok_or(NoCaller::Missing)?;
            Caller::from_certificate(certificates.first().ok_or(NoCaller::Missing)?)
        };
        connection.caller.get_or_init(read).clone()
    }

    /// True the first time that something is refused on this connection.
    pub(crate) fn is_first_refusal(&self) -> bool {
        !self.refused.swap(true, Ordering::Relaxed)
    }
}

/// A TCP stream whose requests know their caller.
pub struct Incoming {
    stream: TcpStream,
    connection: Connection,
}

/// Connections whose callers are named by their certificates, without Nagle's delay: a token is a small packet that somebody waits for. Each is
/// made with the `credentials` of its moment. To be called within a runtime, which accepts until the stream is dropped.
pub fn incoming(
    listener: TcpListener,
    credentials: Credentials,
) -> impl Stream<Item = io::Result<TlsStream<Incoming>>> + Unpin + Send + 'static {
    let (proven, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut arriving = accept(listener, None);
        loop {
            let Ok(place) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let arrived = tokio::select! {
                arrived = arriving.next() => arrived,
                () = proven.closed() => return,
            };
            let stream = match arrived {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => {
                    debug!(%error, "accepting");
                    sleep(PAUSE).await;
                    continue;
                }
                None => return,
            };
            let acceptor = TlsAcceptor::from(credentials.server());
            let proven = proven.clone();
            tokio::spawn(async move {
                match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    // Nobody is there to take it: the server has ended.
                    Ok(Ok(stream)) => drop(proven.send(Ok(stream)).await),
                    Ok(Err(error)) => debug!(%error, "a caller does not prove who it is"),
                    Err(_) => debug!("a caller does not prove who it is in time"),
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(stream)
}

/// Plain-text connections of callers that are all taken to be `everybody`. For measurements without encryption.
///
/// # Errors
/// When `listener` can be reached from other machines.
pub fn incoming_in_plain_text(
    listener: TcpListener,
    everybody: Caller,
) -> io::Result<impl Stream<Item = io::Result<Incoming>>> {
    if !listener.local_addr()?.ip().is_loopback() {
        return Err(io::Error::other("plain text is for loopback only"));
    }
    Ok(accept(listener, Some(everybody)))
}

fn accept(listener: TcpListener, everybody: Option<Caller>) -> impl Stream<Item = io::Result<Incoming>> {
    TcpListenerStream::new(listener).map(move |stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        let connection = Connection::default();
        if let Some(caller) = &everybody {
            connection.caller.get_or_init(|| Ok(caller.clone()));
        }
        Ok(Incoming { stream, connection })
    })
}

impl Connected for Incoming {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
