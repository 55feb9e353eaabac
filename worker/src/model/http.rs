//! Files on an HTTP server, read by range.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::source::Folder;
use dunlin_model::{ByteSource, ModelError};

/// Time for one connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time until the answer begins.
const RESPONSE: Duration = Duration::from_secs(15);

/// An agent with our limits.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(RESPONSE))
        .build()
        .into()
}

/// A file whose server knows Range.
pub struct HttpSource {
    agent: ureq::Agent,
    url: String,
    len: u64,
}

impl HttpSource {
    /// Asks for the length.
    ///
    /// # Errors
    /// When the server does not answer, or not with a file that can be read by range.
    pub fn open(url: &str) -> io::Result<Self> {
        Self::ask(url)?.map_err(|status| io::Error::other(format!("the server answers HTTP {status}")))
    }

    /// The same; the status when there is no such file, as far as we may know.
    fn ask(url: &str) -> io::Result<Result<Self, u16>> {
        let agent = agent();
        let response = agent.get(url).header("range", "bytes=0-0").call().map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
        let len = range.and_then(|v| v.rsplit('/').next()).and_then(|v| v.parse().ok());
        match (status, len) {
            (206, Some(len)) => Ok(Ok(Self { agent, url: url.to_owned(), len })),
            // Buckets answer 403 where there is nothing, to whoever may not list them.
            (403 | 404, _) => Ok(Err(status)),
            (200, _) => Err(io::Error::other("the server ignores Range requests; use one that knows them")),
            _ => Err(io::Error::other(format!("the server answers HTTP {status}"))),
        }
    }
}

/// The files below a URL. A server lists nothing: which files there are follows from their names.
pub struct HttpFolder {
    url: String,
}

impl HttpFolder {
    /// The folder at `url`, if there is a model in Hugging Face's form.
    #[must_use]
    pub fn find(url: &str) -> Option<Self> {
        let folder = Self { url: url.trim_end_matches('/').to_owned() };
        // Whatever is wrong with it is said when the file of this name is opened.
        folder.open("config.json").ok().flatten().map(|_| folder)
    }

    /// What the file at `url` is in, and its name there; none when the URL does not end with a name.
    #[must_use]
    pub fn of(url: &str) -> Option<(Self, &str)> {
        let (folder, name) = url.rsplit_once('/')?;
        (!name.is_empty()).then(|| (Self { url: folder.to_owned() }, name))
    }
}

impl Folder for HttpFolder {
    fn open(&self, name: &str) -> Result<Option<Arc<dyn ByteSource>>, ModelError> {
        let url = format!("{}/{name}", self.url);
        let found = HttpSource::ask(&url).map_err(|source| ModelError::Read { what: url, source })?;
        Ok(found.ok().map(|file| Arc::new(file) as Arc<dyn ByteSource>))
    }

    fn names(&self) -> Result<Option<Vec<String>>, ModelError> {
        Ok(None)
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}

impl ByteSource for HttpSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let range = format!("bytes={offset}-{}", offset + buffer.len() as u64 - 1);
        let response = self.agent.get(&self.url).header("range", range).call().map_err(io::Error::other)?;
        if response.status() != 206 {
            return Err(io::Error::other(format!("the server answers HTTP {}", response.status())));
        }
        response.into_body().into_reader().read_exact(buffer)
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// The URL of a server that answers one request with this status.
    fn server(status: u16) -> (String, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/m", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        (url, server)
    }

    #[test]
    fn what_is_beside_a_file_has_its_url_but_for_the_name() {
        let (folder, name) = HttpFolder::of("https://host/models/m-00001-of-00002.gguf").unwrap();
        assert_eq!((folder.describe().as_str(), name), ("https://host/models", "m-00001-of-00002.gguf"));
        assert!(HttpFolder::of("https://host/models/").is_none());
    }

    #[test]
    fn a_file_that_need_not_be_there_is_absent_or_cannot_be_read_for_the_moment() {
        for (status, absent) in [(404, Some(true)), (403, Some(true)), (503, None), (500, None)] {
            let (url, answering) = server(status);
            let found = HttpFolder { url }.open("tokenizer_config.json");
            assert_eq!(found.as_ref().ok().map(Option::is_none), absent, "HTTP {status}");
            assert!(found.err().is_none_or(|error| error.is_unreachable()));
            answering.join().unwrap();
            let (url, answering) = server(status);
            let error = HttpSource::open(&url).err().unwrap().to_string();
            assert!(error.contains(&status.to_string()), "{error}");
            answering.join().unwrap();
        }
    }

    #[test]
    fn https_has_certificates_to_trust_and_a_server_that_hangs_up_is_an_error() {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/model.gguf", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
        assert!(HttpSource::open(&url).is_err());
        server.join().unwrap();
    }
}
