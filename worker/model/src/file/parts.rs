//! A GGUF file in several: each has some of the tensors, and the first one what is said of all.
//!
//! As llama.cpp's `gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on, with `split.no` from 0, `split.count` and `split.tensors.count`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::ModelError;
use crate::gguf::{self, Header, Value};
use crate::source::{ByteSource, Folder};

/// More parts than any model has.
const PARTS_MAX: u32 = 4096;

/// Where a file is, so that the others can be found.
pub struct Beside<'a> {
    /// What it is in.
    pub folder: &'a dyn Folder,
    /// Its name there.
    pub name: &'a str,
}

/// All of a GGUF file.
pub(super) struct Parts {
    /// Of the first one, with the tensors of all.
    pub header: Header,
    pub sources: Vec<Arc<dyn ByteSource>>,
    /// Which of `sources` has a tensor, if it is not the first.
    pub part_of: BTreeMap<String, usize>,
}

impl Parts {
    /// The source that has this tensor.
    pub(super) fn source_of(&self, tensor: &str) -> usize {
        self.part_of.get(tensor).copied().unwrap_or(0)
    }
}

/// Reads the headers of a file and of all that belong to it.
pub(super) fn read(first: Arc<dyn ByteSource>, beside: Option<&Beside<'_>>) -> Result<Parts, ModelError> {
    let file = first.describe();
    let header = gguf::read_header(first.as_ref())?;
    let refused =
        |what: String, remedy: String| ModelError::Refused { what: format!("{file} {what}"), remedy };
    let count = whole(&header, "split.count").unwrap_or(1);
    let mut parts = Parts { header, sources: vec![first], part_of: BTreeMap::new() };
    if count <= 1 {
        return Ok(parts);
    }
    let number = whole(&parts.header, "split.no").map_or(1, |no| no.saturating_add(1));
    let what = format!("is part {number} of {count}");
    if count > PARTS_MAX {
        return Err(refused(what, format!("up to {PARTS_MAX} parts are read")));
    }
    let ending = ending(1, count);
    if number != 1 {
        return Err(refused(what, format!("give the first one, whose name ends in `{ending}`")));
    }
    let Some((beside, stem)) = beside.and_then(|b| Some((b, b.name.strip_suffix(ending.as_str())?))) else {
        return Err(refused(
            what,
            format!("its name must end in `{ending}`, and the others must be beside it under such names"),
        ));
    };
    for number in 2..=count {
        let name = format!("{stem}{}", self::ending(number, count));
        let source = beside.folder.open(&name)?.ok_or_else(|| {
            refused(what.clone(), format!("part {number} is missing: put `{name}` beside it"))
        })?;
        parts.add(source, number, count)?;
    }
    let found = parts.header.tensors.len();
    match whole(&parts.header, "split.tensors.count") {
        Some(said) if said as usize != found => {
            let what = format!("its parts have {found} tensors, and `split.tensors.count` is {said}");
            Err(ModelError::Malformed { file, format: "GGUF", what })
        }
        _ => Ok(parts),
    }
}

impl Parts {
    fn add(&mut self, source: Arc<dyn ByteSource>, number: u32, count: u32) -> Result<(), ModelError> {
        let header = gguf::read_header(source.as_ref())?;
        let wrong = |what| ModelError::Malformed { file: source.describe(), format: "GGUF", what };
        let said = (whole(&header, "split.no").map(|no| no.saturating_add(1)), whole(&header, "split.count"));
        if said != (Some(number), Some(count)) {
            let said = match said {
                (Some(number), Some(count)) => format!("part {number} of {count}"),
                _ => "no part of anything".to_owned(),
            };
            return Err(wrong(format!(
                "by its name it is part {number} of {count}, and it says that it is {said}"
            )));
        }
        for (name, tensor) in header.tensors {
            if self.header.tensors.contains_key(&name) {
                return Err(wrong(format!("it has tensor `{name}`, which another part has, too")));
            }
            self.part_of.insert(name.clone(), self.sources.len());
            self.header.tensors.insert(name, tensor);
        }
        self.sources.push(source);
        Ok(())
    }
}

/// How the name of a part ends.
fn ending(number: u32, count: u32) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

fn whole(header: &Header, key: &str) -> Option<u32> {
    header.values.get(key).and_then(Value::as_u32)
}
