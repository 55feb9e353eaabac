//! Bytes of a model file, by range; files of a folder, by name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::ModelError;

/// A file somewhere: read at an offset, from many threads.
pub trait ByteSource: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// No bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read or the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Where it is, for messages.
    fn describe(&self) -> String;
}

/// The files of a folder somewhere.
pub trait Folder: Send + Sync {
    /// Opens a file; none when there is no such file.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn open(&self, name: &str) -> Result<Option<Arc<dyn ByteSource>>, ModelError>;
    /// Names of all files; none when the folder cannot be listed.
    ///
    /// # Errors
    /// When it cannot be read.
    fn names(&self) -> Result<Option<Vec<String>>, ModelError>;
    /// Where it is, for messages.
    fn describe(&self) -> String;
}

/// A local folder.
pub struct LocalFolder(pub PathBuf);

impl Folder for LocalFolder {
    fn open(&self, name: &str) -> Result<Option<Arc<dyn ByteSource>>, ModelError> {
        match FileSource::open(&self.0.join(name)) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(ModelError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound && self.0.is_dir() =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn names(&self) -> Result<Option<Vec<String>>, ModelError> {
        let entries = std::fs::read_dir(&self.0)
            .map_err(|source| ModelError::Read { what: self.describe(), source })?;
        Ok(Some(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()))
    }

    fn describe(&self) -> String {
        self.0.display().to_string()
    }
}

/// A local file.
pub struct FileSource {
    file: File,
    path: PathBuf,
    len: u64,
}

impl FileSource {
    /// Opens `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { what: path.display().to_string(), source };
        let file = File::open(path).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        Ok(Self { file, path: path.to_owned(), len })
    }
}

impl ByteSource for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// Bytes in memory, for tests.
pub struct MemorySource(pub Vec<u8>);

impl ByteSource for MemorySource {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn describe(&self) -> String {
        "bytes in memory".to_owned()
    }
}
