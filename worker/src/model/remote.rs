//! Models on servers: what the store reads by range, as the model's reader takes it.

use std::io;
use std::sync::Arc;

use dunlin_model::source::Folder;
use dunlin_model::{ByteSource, ModelError};
use dunlin_store::{RangedFile, Server};

/// A file whose server knows Range.
pub struct RemoteFile {
    file: RangedFile,
    /// Where it is, for messages.
    place: String,
}

impl RemoteFile {
    /// A file of `file`, which is at `place`.
    #[must_use]
    pub fn new(file: RangedFile, place: String) -> Self {
        Self { file, place }
    }
}

impl ByteSource for RemoteFile {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}

/// The files below a place. A server lists nothing: which files there are follows from their names.
pub struct RemoteFolder {
    /// Where it is.
    pub server: Server,
    /// The same, for messages.
    pub place: String,
}

impl Folder for RemoteFolder {
    fn open(&self, name: &str) -> Result<Option<Arc<dyn ByteSource>>, ModelError> {
        let what = format!("{}/{name}", self.place);
        match self.server.ranged(name) {
            Ok(found) => Ok(found.map(|file| Arc::new(RemoteFile::new(file, what)) as Arc<dyn ByteSource>)),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(ModelError::Read { what, source: error.into() }),
        }
    }

    fn names(&self) -> Result<Option<Vec<String>>, ModelError> {
        Ok(None)
    }

    fn describe(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::io::{Read, Write};
    use std::net::TcpListener;

    use dunlin_store::{Limits, Location};

    use super::*;

    #[test]
    fn a_file_that_need_not_be_there_is_absent_or_cannot_be_read_for_the_moment() {
        for (status, absent) in [(404, Some(true)), (403, Some(true)), (503, None), (500, None)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let place = format!("http://{}/m", listener.local_addr().unwrap());
            let answering = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let limits = Limits { attempts: 1, ..Limits::default() };
            let server = Server::with_limits(&Location::parse(&place), "model", limits).unwrap();
            let found = RemoteFolder { server, place }.open("tokenizer_config.json");
            assert_eq!(found.as_ref().ok().map(Option::is_none), absent, "HTTP {status}");
            assert!(found.err().is_none_or(|error| error.is_unreachable()));
            answering.join().unwrap();
        }
    }

    #[test]
    fn https_has_certificates_to_trust_and_a_server_that_hangs_up_is_an_error() {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Location::parse(&format!("https://{}/model.gguf", listener.local_addr().unwrap()));
        let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let limits = Limits { attempts: 1, ..Limits::default() };
        assert!(Server::with_limits(&place, "model", limits).unwrap().ranged("").is_err());
        server.join().unwrap();
    }
}
