//! Bytes of a file or of a server's file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::DataError;
use super::tokens::hexadecimal;
use crate::config::{HttpLocation, Location};

/// More than is held in memory as tokens.
const BYTES_MAX: u64 = 1 << 40;
/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Time for one connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time until the answer begins.
const RESPONSE: Duration = Duration::from_secs(15);
/// Time for all of it.
const BODY: Duration = Duration::from_secs(24 * 3600);

/// A stream of bytes that knows where it is from, and what it should hash to.
pub struct Source {
    /// Where it is, for messages.
    pub name: String,
    reader: BufReader<Box<dyn Read>>,
    hash: Option<(Sha256, String)>,
    /// Nothing was read yet.
    begins: bool,
}

impl Source {
    /// Opens `location`.
    ///
    /// # Errors
    /// When there is no such file, or the server does not answer with one.
    pub fn open(location: &Location) -> Result<Self, DataError> {
        let (name, sha256, stream): (String, _, io::Result<Box<dyn Read>>) = match location {
            Location::Path(path) => (path.display().to_string(), &None, open_file(path)),
            Location::Http(HttpLocation { url, sha256 }) => (url.clone(), sha256, get(url)),
        };
        let stream = stream.map_err(|source| DataError::Read { what: name.clone(), source })?;
        let hash = sha256.as_ref().map(|expected| (Sha256::new(), expected.to_ascii_lowercase()));
        let reader = BufReader::with_capacity(1 << 16, Box::new(stream.take(BYTES_MAX)) as Box<dyn Read>);
        Ok(Self { name, reader, hash, begins: true })
    }

    /// Appends bytes up to `max` more, or up to and with a `\n`, if that comes before; false when there are none left. A byte order mark at the
    /// beginning is left out.
    ///
    /// # Errors
    /// When reading fails, or at the end, when all that was read has not the digest it should have.
    pub fn read_line(&mut self, max: usize, line: &mut Vec<u8>) -> Result<bool, DataError> {
        let before = line.len();
        let read = (&mut self.reader).take(max as u64).read_until(b'\n', line);
        let read = read.map_err(|source| DataError::Read { what: self.name.clone(), source })?;
        if let Some((hash, _)) = &mut self.hash {
            hash.update(&line[before..]);
        }
        if std::mem::take(&mut self.begins) && line[before..].starts_with(BYTE_ORDER_MARK) {
            line.drain(before..before + BYTE_ORDER_MARK.len());
        }
        if read == 0 && max > 0 {
            self.check()?;
        }
        Ok(read > 0)
    }

    fn check(&mut self) -> Result<(), DataError> {
        let Some((hash, expected)) = self.hash.take() else { return Ok(()) };
        let found = hexadecimal(&hash.finalize());
        if found == expected {
            return Ok(());
        }
        Err(DataError::Digest { what: self.name.clone(), found, expected })
    }
}

/// Opens a file. What is none may never end, or block whoever opens it.
fn open_file(path: &Path) -> io::Result<Box<dyn Read>> {
    if !std::fs::metadata(path)?.is_file() {
        let problem = "it is no file, such as a folder, a pipe or a device; put the data into one file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    Ok(Box::new(File::open(path)?))
}

fn get(url: &str) -> io::Result<Box<dyn Read>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(RESPONSE))
        .timeout_recv_body(Some(BODY))
        .build()
        .into();
    let response = agent.get(url).call().map_err(io::Error::other)?;
    if response.status() != 200 {
        let status = response.status();
        let kind = match status.as_u16() {
            404 | 410 => io::ErrorKind::NotFound,
            401 | 403 => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        return Err(io::Error::new(kind, format!("the server answers HTTP {status}")));
    }
    Ok(Box::new(response.into_body().into_reader()))
}
