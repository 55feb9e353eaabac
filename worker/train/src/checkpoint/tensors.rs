//! Safetensors files of f32, written as they are hashed.

use std::io::{self, Write};

use dunlin_model::safetensors::{Dtype, f32_header, read_header};
use dunlin_model::{ByteSource, FileSource};
use dunlin_store::digest::Hash;

use super::manifest::FileRecord;
use super::tensor::Tensor;

/// Writes `tensors`, named by `name`, and returns the record of file `file`.
pub(super) fn write(
    file: &str,
    tensors: &[(String, Tensor<'_>)],
    out: &mut dyn Write,
) -> io::Result<FileRecord> {
    let shapes: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape)).collect();
    let mut out = Hashing::new(out);
    out.write_all(&f32_header(&shapes))?;
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

/// Writes one file with the tensors of several, which are of f32, and returns the record of file `file`.
pub(super) fn write_merged(file: &str, parts: &[FileSource], out: &mut dyn Write) -> io::Result<FileRecord> {
    let headers = parts.iter().map(|part| read_header(part).map_err(io::Error::other));
    let headers = headers.collect::<io::Result<Vec<_>>>()?;
    let tensors: Vec<_> =
        headers.iter().zip(parts).flat_map(|(header, part)| header.iter().map(move |t| (t, part))).collect();
    let shapes: Vec<_> =
        tensors.iter().map(|((name, tensor), _)| (name.as_str(), tensor.shape.as_slice())).collect();
    let mut out = Hashing::new(out);
    out.write_all(&f32_header(&shapes))?;
    let mut buffer = vec![0; 1 << 18];
    for ((name, tensor), part) in tensors {
        if tensor.dtype != Dtype::F32 {
            return Err(io::Error::other(format!("tensor `{name}` is {:?}, not F32", tensor.dtype)));
        }
        for start in (0..tensor.bytes).step_by(buffer.len()) {
            let bytes = &mut buffer[..(1 << 18).min(tensor.bytes - start)];
            part.read_at(tensor.offset + start as u64, bytes)?;
            out.write_all(bytes)?;
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
    hash: Hash,
}

impl<'a> Hashing<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self { out, hash: Hash::default() }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    fn record(self, name: &str) -> FileRecord {
        FileRecord { name: name.to_owned(), bytes: self.hash.bytes(), sha256: self.hash.finish() }
    }
}
