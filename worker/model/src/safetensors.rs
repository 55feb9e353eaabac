//! Header of a safetensors file, with limits.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};

use crate::error::{ModelError, excerpt};
use crate::mistaken;
use crate::source::ByteSource;

/// As the format's own limit.
const HEADER_MAX: u64 = 100_000_000;
const TENSORS_MAX: usize = 1 << 18;

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// One that the format has and that is not read here, by the format's name.
    Other(&'static str),
}

/// The format's other types and their bits.
const OTHERS: [(&str, usize); 19] = [
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("U16", 16),
    ("I16", 16),
    ("U32", 32),
    ("I32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F64", 64),
    ("C64", 64),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F4", 4),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
];

impl Dtype {
    /// By the format's name, and how many bits a value has.
    fn parse(name: &str) -> Option<(Self, usize)> {
        match name {
            "F32" => Some((Self::F32, 32)),
            "F16" => Some((Self::F16, 16)),
            "BF16" => Some((Self::Bf16, 16)),
            other => {
                let found = OTHERS.iter().find(|(name, _)| *name == other);
                found.map(|&(name, bits)| (Self::Other(name), bits))
            }
        }
    }
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeTensor {
    /// Rows first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: Dtype,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: usize,
}

/// Reads and checks the header.
///
/// # Errors
/// When it cannot be read, or is not sound.
pub fn read_header(source: &dyn ByteSource) -> Result<BTreeMap<String, SafeTensor>, ModelError> {
    let wrong = |what: String| ModelError::Malformed { file: source.describe(), format: "safetensors", what };
    let read = |error| ModelError::Read { what: source.describe(), source: error };
    if source.len() < 8 {
        return Err(wrong("it is shorter than 8 bytes".to_owned()));
    }
    let mut length = [0; 8];
    source.read_at(0, &mut length).map_err(read)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_MAX || length + 8 > source.len() {
        mistaken::for_safetensors(source)?;
        return Err(wrong(format!("a header of {length} bytes in a file of {}", source.len())));
    }
    let mut header = vec![0; length as usize];
    source.read_at(8, &mut header).map_err(read)?;
    let Entries(entries) =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is not sound JSON: {e}")))?;
    let data = 8 + length;
    let mut out = BTreeMap::new();
    let mut spans = Vec::new();
    for (name, Entry { dtype, shape, data_offsets: [start, end] }) in entries {
        let Some((dtype, bits)) = Dtype::parse(&dtype) else {
            let what = format!("tensor `{}` has type `{}`", excerpt(&name), excerpt(&dtype));
            return Err(wrong(what));
        };
        let shape: Vec<usize> = shape.into_iter().map(|s| usize::try_from(s).unwrap_or(usize::MAX)).collect();
        let values = shape.iter().try_fold(1usize, |product, &s| product.checked_mul(s));
        let bits = values.and_then(|v| v.checked_mul(bits)).filter(|bits| bits.is_multiple_of(8));
        let bytes = bits.map(|bits| bits / 8);
        let Some(bytes) = bytes.filter(|b| start.checked_add(*b as u64) == Some(end)) else {
            return Err(wrong(format!("tensor `{name}` of shape {shape:?} is at {start}..{end}")));
        };
        if data.checked_add(end).is_none_or(|end| end > source.len()) {
            let len = source.len();
            return Err(wrong(format!(
                "tensor `{name}` is at {start}..{end} behind a header of {length} bytes in a file of {len}; it may be truncated"
            )));
        }
        if bytes > 0 {
            spans.push((start, end, name.clone()));
        }
        out.insert(name, SafeTensor { shape, dtype, offset: data + start, bytes });
    }
    spans.sort();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(wrong(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2))),
        None => Ok(out),
    }
}

/// The bytes before those of f32 tensors that follow each other in this order.
#[must_use]
pub fn f32_header(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * 4;
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]});
        header.insert((*name).to_owned(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

/// What the header says of a tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header. Read without `serde_json::Value`, which takes many times the memory of the text and forgets names that come twice.
struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if out.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor `{name}` twice")));
                    }
                    out.insert(name, entry);
                    if out.len() > TENSORS_MAX {
                        return Err(A::Error::custom(format!("more than {TENSORS_MAX} tensors")));
                    }
                }
                Ok(Entries(out))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
