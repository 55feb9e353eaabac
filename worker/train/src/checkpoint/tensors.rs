//! Safetensors files of f32, written as they are hashed.

use std::io::{self, Write};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{FileRecord, Tensor};
use crate::data::tokens::hexadecimal;

/// Writes `tensors`, named by `name`, and returns the record of file `file`.
pub(super) fn write(
    file: &str,
    tensors: &[(String, Tensor<'_>)],
    out: &mut dyn Write,
) -> io::Result<FileRecord> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.values.len() * 4;
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // Keeps the values aligned.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut out = Hashing::new(out);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut bytes = Vec::new();
    for (_, tensor) in tensors {
        for part in tensor.values.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|v| v.to_le_bytes()));
            out.write_all(&bytes)?;
        }
    }
    Ok(out.record(file))
}

/// Writes bytes and returns the record of file `file`.
pub(super) fn write_bytes(file: &str, bytes: &[u8], out: &mut dyn Write) -> io::Result<FileRecord> {
    let mut out = Hashing::new(out);
    out.write_all(bytes)?;
    Ok(out.record(file))
}

struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
    bytes: u64,
}

impl<'a> Hashing<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self { out, hash: Sha256::new(), bytes: 0 }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn record(self, name: &str) -> FileRecord {
        FileRecord { name: name.to_owned(), bytes: self.bytes, sha256: hexadecimal(&self.hash.finalize()) }
    }
}
