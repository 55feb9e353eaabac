//! A file of a server that is read by range.

use std::io::{self, Read};

use crate::error::StoreError;
use crate::reader::{Reader, Version, content_range, no_ranges, too_long};
use crate::request::Action;
use crate::server::Server;

/// A file whose server knows Range.
pub struct RangedFile {
    server: Server,
    name: String,
    len: u64,
    version: Version,
}

impl Server {
    /// A file that is read by range, if it is there.
    ///
    /// # Errors
    /// When the server does not give it, or knows no ranges.
    pub fn ranged(&self, name: &str) -> Result<Option<RangedFile>, StoreError> {
        RangedFile::open(self, name)
    }
}

impl RangedFile {
    /// Asks for the length.
    fn open(server: &Server, name: &str) -> Result<Option<Self>, StoreError> {
        let Some(answer) = server.if_there(Action::Get, name, Some("bytes=0-0"))? else { return Ok(None) };
        let Some((0, Some(len))) = content_range(&answer).filter(|_| answer.status() == 206) else {
            return Err(no_ranges());
        };
        let max = server.limits().bytes_max;
        if len > max {
            return Err(too_long(max));
        }
        let version = Version::of(&answer, Some(len));
        Ok(Some(Self { server: server.clone(), name: name.to_owned(), len, version }))
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read, the file ends before, or it is another than it was.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        Reader::new(&self.server, &self.name, offset, Some(end), self.version.clone()).read_exact(buffer)
    }
}
