//! SHA-256, in hexadecimal.

use std::fmt::Write as _;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// A digest of what was written so far, and how much that was.
#[derive(Clone, Default)]
pub struct Hash {
    state: Sha256,
    bytes: u64,
}

impl Hash {
    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> String {
        hexadecimal(&self.state.finalize())
    }
}

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The digest of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// The digest of all that `from` has.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(from: &mut dyn Read) -> io::Result<String> {
    let mut hash = Hash::default();
    io::copy(&mut io::BufReader::with_capacity(1 << 20, from), &mut hash)?;
    Ok(hash.finish())
}

/// Whether `text` can be a digest.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Two digits a byte.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_bytes_however_they_come() {
        // printf abc | sha256sum
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
        assert_eq!(sha256_of(&mut &b"abc"[..]).unwrap(), abc);
        let mut hash = Hash::default();
        hash.write_all(b"ab").unwrap();
        hash.update(b"c");
        assert_eq!((hash.bytes(), hash.finish().as_str()), (3, abc));
        assert!(is_sha256(abc) && !is_sha256(&abc[1..]) && !is_sha256(&abc.replace('b', "g")));
    }
}
