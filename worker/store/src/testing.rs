//! Servers that do as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::http::Limits;
use crate::location::Location;
use crate::server::Server;

/// A request, and how much of a body it was answered with.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method and path.
    pub(crate) line: String,
    /// Names are lower case.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) answered: usize,
}

impl Asked {
    /// First and last byte of the range.
    fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) =
            self.headers.iter().find_map(|h| h.strip_prefix("range: bytes="))?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// What a server does with a request.
pub(crate) enum Answer {
    /// Sends this and closes.
    Bytes(Vec<u8>),
    /// Sends this and then nothing, until the client goes.
    Silence(Vec<u8>),
    /// Sends this and then a byte now and then, until the client goes.
    Drip(Vec<u8>),
    /// Sends this and then zeros as fast as they are taken, until the client goes.
    Flood(Vec<u8>),
}

/// A server in a thread.
pub(crate) struct Served {
    pub(crate) url: String,
    thread: JoinHandle<Vec<Asked>>,
    address: std::net::SocketAddr,
}

impl Served {
    /// The requests, in their order.
    pub(crate) fn stop(self) -> Vec<Asked> {
        // It takes this for the end, if it waits for another request.
        drop(TcpStream::connect(self.address));
        self.thread.join().unwrap()
    }
}

/// Answers so many requests, one a connection.
pub(crate) fn serve(count: usize, answer: impl Fn(usize, &Asked) -> Answer + Send + 'static) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut all = Vec::new();
        while all.len() < count {
            let (stream, _) = listener.accept().unwrap();
            let Some(mut asked) = read(&stream) else { break };
            let answer = answer(all.len(), &asked);
            asked.answered = send(&stream, answer);
            all.push(asked);
        }
        all
    });
    Served { url: format!("http://{address}"), thread, address }
}

/// Gives `content` at every path, by range if asked so.
pub(crate) fn file_server(content: Vec<u8>) -> Served {
    serve(usize::MAX, move |_, asked| match asked.range() {
        None => with_body(200, &[("ETag", "\"1\"")], &content),
        Some((first, _)) if first >= content.len() => status(416),
        Some((first, last)) => ranged(&content, first, last),
    })
}

/// A part of `content`, as far as it goes.
pub(crate) fn ranged(content: &[u8], first: usize, last: Option<usize>) -> Answer {
    let last = last.unwrap_or(usize::MAX).min(content.len() - 1);
    let range = format!("bytes {first}-{last}/{}", content.len());
    with_body(206, &[("ETag", "\"1\""), ("Content-Range", &range)], &content[first..=last])
}

pub(crate) fn status(status: u16) -> Answer {
    with_body(status, &[], b"")
}

pub(crate) fn with_body(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let length = body.len().to_string();
    let mut bytes = head(status, &[headers, &[("Content-Length", length.as_str())]].concat());
    bytes.extend_from_slice(body);
    Answer::Bytes(bytes)
}

pub(crate) fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{lines}\r\n").into_bytes()
}

/// What nobody waits for.
pub(crate) fn quick() -> Limits {
    Limits { pause: Duration::ZERO, ..Limits::default() }
}

pub(crate) fn server_at(url: &str) -> Server {
    Server::with_limits(&Location::parse(url), "checkpoint.destination", quick()).unwrap()
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length, mut headers) = (String::new(), 0, Vec::new());
    if reader.read_line(&mut first).unwrap() == 0 {
        return None;
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(':') else { break };
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        if name == "content-length" {
            length = value.parse().unwrap();
        }
        headers.push(format!("{name}: {value}"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let line = first.rsplit_once(' ').unwrap().0.to_owned();
    Some(Asked { line, headers, body, answered: 0 })
}

/// Bytes of the body that were sent.
fn send(mut stream: &TcpStream, answer: Answer) -> usize {
    let (Answer::Bytes(begin) | Answer::Silence(begin) | Answer::Drip(begin) | Answer::Flood(begin)) =
        &answer;
    // A client may go at any time.
    let _ = stream.write_all(begin);
    match answer {
        Answer::Bytes(_) => drop(stream.shutdown(Shutdown::Write)),
        Answer::Silence(_) => while stream.read(&mut [0]).is_ok_and(|count| count > 0) {},
        Answer::Drip(_) => {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Answer::Flood(_) => while stream.write_all(&[0; 1 << 16]).is_ok() {},
    }
    let end = begin.windows(4).position(|four| four == b"\r\n\r\n");
    end.map_or(0, |end| begin.len() - end - 4)
}
