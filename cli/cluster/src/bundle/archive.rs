//! Writes files into one .tar.gz.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// A file of the bundle: its path inside, and what is in it.
pub type Entry = (String, String);

/// Writes `entries` below `folder` into a new file at `path`; its size in bytes.
///
/// # Errors
/// When there is such a file already, or it cannot be written.
pub fn archive(path: &Path, folder: &str, entries: &[Entry], now_s: u64) -> io::Result<u64> {
    let file = File::create_new(path)?;
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now_s);
        tar.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes())?;
    }
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_written_can_be_read_and_nothing_is_overwritten() {
        let path = std::env::temp_dir().join(format!("dunlin-bundle-{}.tar.gz", std::process::id()));
        let entries =
            [("doctor.txt".to_owned(), "all is well\n".to_owned()), ("logs/p.log".to_owned(), String::new())];
        let size = archive(&path, "b", &entries, 7).unwrap();
        let again = archive(&path, "b", &entries, 7).unwrap_err();
        let file = File::open(&path).unwrap();
        let found: Vec<(String, String)> = tar::Archive::new(flate2::read::GzDecoder::new(file))
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        std::fs::remove_file(&path).unwrap();
        assert!(size > 0 && again.kind() == io::ErrorKind::AlreadyExists);
        assert_eq!(
            found,
            [("b/doctor.txt".into(), "all is well\n".into()), ("b/logs/p.log".into(), String::new())]
        );
    }
}
