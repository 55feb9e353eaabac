//! A server that keeps what is PUT, for tests: GET, HEAD, PUT and DELETE of files below a folder. It says of each request what it was.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

/// Longest header of a request.
const HEADER_MAX: u64 = 1 << 16;

/// A running server; it ends with the process.
pub struct Store {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    requests: Arc<Mutex<Vec<String>>>,
    away: Arc<AtomicBool>,
}

impl Store {
    /// Serves `folder` to requests whose `Authorization` is `password`, or to all.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn start(folder: &Path, password: Option<&str>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let (requests, away) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let shelf = Arc::new(Shelf {
            folder: folder.to_owned(),
            password: password.map(str::to_owned),
            log: Arc::clone(&requests),
            away: Arc::clone(&away),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shelf = Arc::clone(&shelf);
                std::thread::spawn(move || {
                    // A client that goes away is no error of the server.
                    let _ = shelf.serve(&stream);
                });
            }
        });
        Ok(Self { url, requests, away })
    }

    /// Answers 503 to everything from now on, or no longer.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// Requests so far, as `PUT /path`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a server has.
struct Shelf {
    folder: PathBuf,
    password: Option<String>,
    log: Arc<Mutex<Vec<String>>>,
    away: Arc<AtomicBool>,
}

impl Shelf {
    #[expect(clippy::too_many_lines, reason = "a request from its first line to the end of the answer")]
    fn serve(&self, stream: &TcpStream) -> Result<()> {
        let password = self.password.as_deref();
        let mut reader = BufReader::new(stream);
        loop {
            let mut head = (&mut reader).take(HEADER_MAX);
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split_whitespace();
            let (method, path) = (words.next().context("no method")?, words.next().context("no path")?);
            let (mut length, mut welcome, mut range) = (0, password.is_none(), None);
            loop {
                let mut header = String::new();
                head.read_line(&mut header)?;
                let Some((name, value)) = header.trim().split_once(':') else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse()?;
                }
                welcome |= name.eq_ignore_ascii_case("authorization") && Some(value.trim()) == password;
                if name.eq_ignore_ascii_case("range") {
                    range = Some(bounds(value.trim())?);
                }
                if name.eq_ignore_ascii_case("transfer-encoding") {
                    bail!("a body of unknown length is what object stores refuse");
                }
            }
            self.log.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {path}"));
            let file: PathBuf = self.folder.join(path.trim_start_matches('/'));
            let mut body = Vec::new();
            (&mut reader).take(length).read_to_end(&mut body)?;
            let (mut total, mut end_of) = (None, 0);
            let (status, content) = match method {
                _ if self.away.load(Ordering::SeqCst) => ("503 Service Unavailable", Vec::new()),
                _ if !welcome => ("401 Unauthorized", Vec::new()),
                "PUT" => {
                    std::fs::create_dir_all(file.parent().context("a path without a folder")?)?;
                    std::fs::write(&file, body)?;
                    ("201 Created", Vec::new())
                }
                "DELETE" if std::fs::remove_file(&file).is_ok() => ("204 No Content", Vec::new()),
                "GET" | "HEAD" => match std::fs::read(&file) {
                    Ok(content) if range.is_none() => ("200 OK", content),
                    Ok(content) => {
                        let (start, end) = range.unwrap_or_default();
                        (total, end_of) = (Some(content.len()), end.min(content.len().saturating_sub(1)));
                        ("206 Partial Content", content.get(start..=end_of).unwrap_or_default().to_vec())
                    }
                    Err(_) => ("404 Not Found", Vec::new()),
                },
                _ => ("404 Not Found", Vec::new()),
            };
            let mut out = stream;
            write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n", content.len())?;
            if let (Some(total), Some((start, _))) = (total, range) {
                write!(out, "Content-Range: bytes {start}-{end_of}/{total}\r\n")?;
            }
            write!(out, "\r\n")?;
            if method == "GET" {
                out.write_all(&content)?;
            }
        }
    }
}

/// First and last byte of `bytes=0-99`.
fn bounds(range: &str) -> Result<(usize, usize)> {
    let (start, end) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).context("a range")?;
    Ok((start.parse()?, end.parse()?))
}
