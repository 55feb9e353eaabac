//! Header of a GGUF file (versions 2 and 3), from the format's specification in ggml's docs/gguf.md.
//!
//! Written for files from strangers: every count, length and offset is checked against what the file has, and nothing is allocated that the
//! bytes read so far do not account for.

use std::collections::BTreeMap;

use dunlin_kernels::Format;

use crate::error::{ModelError, excerpt};
use crate::mistaken;
use crate::source::ByteSource;

/// The header may not be longer than this.
const HEADER_MAX: u64 = 256 << 20;
const KEYS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 18;
const STRING_MAX: u64 = 16 << 20;
const DIMENSIONS_MAX: u32 = 4;
/// Elements of all arrays together; they take more memory than in the file.
const ELEMENTS_MAX: u64 = 1 << 24;
/// GGUF's number for an array, and for text.
const ARRAY: u32 = 9;
const TEXT: u32 = 8;
/// Bytes read at once.
const READ_AHEAD: usize = 1 << 20;

/// A metadata value, as far as anybody here needs it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type or bool.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// Text.
    Text(String),
    /// An array of text.
    Texts(Vec<String>),
    /// An array of numbers.
    Numbers(Vec<f64>),
}

impl Value {
    /// An integer that fits.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        match self {
            Self::Integer(v) => u32::try_from(*v).ok(),
            _ => None,
        }
    }

    /// Any number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Integer(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(v) => Some(v),
            _ => None,
        }
    }
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Rows first: `[n, k]` for a matrix, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub format: Format,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: usize,
}

/// What a header says.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Metadata by key.
    pub values: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, GgufTensor>,
}

/// Reads and checks the header.
///
/// # Errors
/// When it cannot be read, or is not sound.
pub fn read_header(source: &dyn ByteSource) -> Result<Header, ModelError> {
    Reader { source, at: 0, buffer: Vec::new(), used: 0, elements: 0 }.header()
}

struct Reader<'a> {
    source: &'a dyn ByteSource,
    /// Offset in the file of the end of `buffer`.
    at: u64,
    buffer: Vec<u8>,
    used: usize,
    /// In arrays so far.
    elements: u64,
}

struct Pending {
    name: String,
    shape: Vec<usize>,
    format: Format,
    offset: u64,
    bytes: usize,
}

impl Reader<'_> {
    fn wrong(&self, what: impl Into<String>) -> ModelError {
        ModelError::Malformed { file: self.source.describe(), format: "GGUF", what: what.into() }
    }

    fn position(&self) -> u64 {
        self.at - (self.buffer.len() - self.used) as u64
    }

    /// The next `count` bytes; `count` is below [`STRING_MAX`] and inside of the file, so the buffer stays small.
    fn take(&mut self, count: usize) -> Result<&[u8], ModelError> {
        if self.buffer.len() - self.used < count {
            let end = self.position() + count as u64;
            if end > self.source.len() {
                return Err(
                    self.wrong(format!("it ends inside of the header, at byte {}", self.source.len()))
                );
            }
            if end > HEADER_MAX {
                return Err(self.wrong(format!("its header is longer than {HEADER_MAX} bytes")));
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            let missing = count - self.buffer.len();
            let left = usize::try_from(self.source.len() - self.at).unwrap_or(usize::MAX);
            let more = missing.max(READ_AHEAD).min(left);
            let old = self.buffer.len();
            self.buffer.resize(old + more, 0);
            self.source
                .read_at(self.at, &mut self.buffer[old..])
                .map_err(|source| ModelError::Read { what: self.source.describe(), source })?;
            self.at += more as u64;
        }
        self.used += count;
        Ok(&self.buffer[self.used - count..self.used])
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take gives as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn text(&mut self) -> Result<String, ModelError> {
        let len = self.u64()?;
        if len > STRING_MAX {
            return Err(self.wrong(format!("a string of {len} bytes at byte {}", self.position())));
        }
        let bytes = self.take(len as usize)?.to_vec();
        String::from_utf8(bytes)
            .map_err(|_| self.wrong(format!("text that is not UTF-8 before byte {}", self.position())))
    }

    fn header(mut self) -> Result<Header, ModelError> {
        if self.source.len() < 24 || self.take(4)? != b"GGUF" {
            mistaken::for_gguf(self.source)?;
            return Err(self.wrong("it does not begin with GGUF"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            mistaken::for_gguf(self.source)?;
            return Err(self.wrong(format!("version {version}, not 2 or 3")));
        }
        let (tensors, keys) = (self.u64()?, self.u64()?);
        if tensors > TENSORS_MAX || keys > KEYS_MAX {
            return Err(self.wrong(format!("{tensors} tensors and {keys} keys")));
        }
        let mut header = Header::default();
        for _ in 0..keys {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            if header.values.insert(key.clone(), value).is_some() {
                return Err(self.wrong(format!("key `{key}` twice")));
            }
        }
        let pending = (0..tensors).map(|_| self.tensor()).collect::<Result<Vec<_>, _>>()?;
        self.place(pending, &mut header)?;
        Ok(header)
    }

    fn value(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            8 => Value::Text(self.text()?),
            ARRAY => {
                let kind = self.u32()?;
                let count = self.u64()?;
                if kind == ARRAY {
                    return Err(self.wrong(format!("an array of arrays at byte {}", self.position())));
                }
                // The smallest element has one byte (a string eight), so the file bounds the count.
                let smallest = if kind == TEXT { 8 } else { 1 };
                if count.saturating_mul(smallest) > self.source.len().saturating_sub(self.position()) {
                    let what = format!(
                        "an array of {count} elements at byte {} of {}; it may be truncated",
                        self.position(),
                        self.source.len()
                    );
                    return Err(self.wrong(what));
                }
                self.elements += count;
                if self.elements > ELEMENTS_MAX {
                    return Err(self.wrong(format!("its arrays have more than {ELEMENTS_MAX} elements")));
                }
                self.array(kind, count)?
            }
            _ => self.scalar(kind)?,
        })
    }

    fn array(&mut self, kind: u32, count: u64) -> Result<Value, ModelError> {
        if kind == TEXT {
            return (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Value::Texts);
        }
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(self.scalar(kind)?.as_f64().unwrap_or_default());
        }
        Ok(Value::Numbers(out))
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 | 7 => Value::Integer(i128::from(self.number::<1>()?[0])),
            1 => Value::Integer(i128::from(i8::from_le_bytes(self.number()?))),
            2 => Value::Integer(i128::from(u16::from_le_bytes(self.number()?))),
            3 => Value::Integer(i128::from(i16::from_le_bytes(self.number()?))),
            4 => Value::Integer(i128::from(self.u32()?)),
            5 => Value::Integer(i128::from(i32::from_le_bytes(self.number()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.number()?))),
            10 => Value::Integer(i128::from(self.u64()?)),
            11 => Value::Integer(i128::from(i64::from_le_bytes(self.number()?))),
            12 => Value::Float(f64::from_le_bytes(self.number()?)),
            _ => {
                return Err(self.wrong(format!("a value of unknown type {kind} at byte {}", self.position())));
            }
        })
    }

    fn tensor(&mut self) -> Result<Pending, ModelError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Err(self.wrong(format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        let mut values = 1usize;
        for _ in 0..dimensions {
            let size = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
            values = values
                .checked_mul(size)
                .ok_or_else(|| self.wrong(format!("tensor `{name}` is too large")))?;
            shape.push(size);
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let format = format(kind).ok_or_else(|| ModelError::Refused {
            what: format!("tensor `{}` of {} is {}", excerpt(&name), self.source.describe(), type_name(kind)),
            remedy:
                "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL and IQ4_XS are the types of GGUF files that run here"
                    .to_owned(),
        })?;
        if values == 0 {
            return Err(self.wrong(format!("tensor `{name}` of shape {shape:?} has no values")));
        }
        // GGUF has the fastest dimension first.
        let k = shape[0];
        shape.reverse();
        let bytes = format.bytes(k).and_then(|row| row.checked_mul(values / k));
        let Some(bytes) = bytes else {
            return Err(
                self.wrong(format!("tensor `{name}` of shape {shape:?} does not fill blocks of {format:?}"))
            );
        };
        Ok(Pending { name, shape, format, offset, bytes })
    }

    /// Gives tensors their place in the file; none may leave it or lie over another.
    fn place(&self, pending: Vec<Pending>, header: &mut Header) -> Result<(), ModelError> {
        let alignment = header.values.get("general.alignment").map_or(Some(32), Value::as_u32).unwrap_or(0);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(self.wrong(format!("an alignment of {alignment}")));
        }
        let alignment = u64::from(alignment);
        let data = self.position().next_multiple_of(alignment);
        let mut spans = Vec::new();
        for tensor in pending {
            let Pending { name, shape, format, offset, bytes } = tensor;
            let start = data.checked_add(offset);
            let end = start.and_then(|start| start.checked_add(bytes as u64));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(self.wrong(format!("tensor `{name}` at offset {offset}")));
            };
            if offset % alignment != 0 {
                let what = format!("tensor `{name}` is at offset {offset}, not a multiple of {alignment}");
                return Err(self.wrong(what));
            }
            if end > self.source.len() {
                let len = self.source.len();
                return Err(self.wrong(format!(
                    "tensor `{name}` is at bytes {start}..{end} of {len}; it may be truncated"
                )));
            }
            spans.push((start, end, name.clone()));
            if header
                .tensors
                .insert(name.clone(), GgufTensor { shape, format, offset: start, bytes })
                .is_some()
            {
                return Err(self.wrong(format!("tensor `{name}` twice")));
            }
        }
        spans.sort();
        match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => Err(self.wrong(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2))),
            None => Ok(()),
        }
    }
}

fn format(kind: u32) -> Option<Format> {
    Some(match kind {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2_K,
        11 => Format::Q3_K,
        12 => Format::Q4_K,
        13 => Format::Q5_K,
        14 => Format::Q6_K,
        20 => Format::IQ4_NL,
        23 => Format::IQ4_XS,
        30 => Format::BF16,
        _ => return None,
    })
}

/// What ggml calls a type that is not read here, after its `ggml.h`.
fn type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return format!("of GGML type {kind}"),
    };
    name.to_owned()
}
