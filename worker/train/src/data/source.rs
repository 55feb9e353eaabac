//! Bytes of a file or of a server's file.

use std::io::{self, BufRead, BufReader, Read};

use dunlin_store::Location;
use dunlin_store::digest::Hash;

use super::error::DataError;

/// More than is held in memory as tokens.
const BYTES_MAX: u64 = 1 << 40;
/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A stream of bytes that knows where it is from, and what it should hash to.
pub struct Source {
    /// Where it is, for messages.
    pub name: String,
    reader: BufReader<Box<dyn Read>>,
    hash: Option<(Hash, String)>,
    /// Nothing was read yet.
    begins: bool,
}

impl Source {
    /// Opens `location`.
    ///
    /// # Errors
    /// When there is no such file, or the server does not answer with one.
    pub fn open(location: &Location) -> Result<Self, DataError> {
        let name = location.to_string();
        let stream = location.open("data").map_err(io::Error::from);
        let stream = stream.map_err(|source| DataError::Read { what: name.clone(), source })?;
        let hash = location.sha256().map(|expected| (Hash::default(), expected));
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
        let found = hash.finish();
        if found == expected {
            return Ok(());
        }
        Err(DataError::Digest { what: self.name.clone(), found, expected })
    }
}
