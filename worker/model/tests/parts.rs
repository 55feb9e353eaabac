//! GGUF files in several parts, and what can be wrong with them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::file::Beside;
use dunlin_model::generate::Whole;
use dunlin_model::source::{Folder, MemorySource};
use dunlin_model::{ByteSource, ModelError, ModelFile};
use dunlin_protocol::SamplingParams;
use support::gguf::{Gguf, tiny};

/// Files in memory.
#[derive(Clone)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Folder for Files {
    fn open(&self, name: &str) -> Result<Option<Arc<dyn ByteSource>>, ModelError> {
        Ok(self.0.get(name).map(|bytes| Arc::new(MemorySource(bytes.clone())) as Arc<dyn ByteSource>))
    }

    fn names(&self) -> Result<Option<Vec<String>>, ModelError> {
        Ok(None)
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

fn name(number: u32) -> String {
    format!("m-{number:05}-of-00003.gguf")
}

/// The model in three parts, as `gguf-split` writes them.
fn three(change: impl Fn(u32, &mut Gguf)) -> Files {
    let whole = tiny();
    let part = |number: u32| {
        let mut part = whole.clone();
        if number > 1 {
            part.values.clear();
        }
        let mut at = 0;
        part.tensors.retain(|_| {
            at += 1;
            at % 3 == number % 3
        });
        part.set("split.no", 2, (number as u16 - 1).to_le_bytes());
        part.set("split.count", 2, 3u16.to_le_bytes());
        part.set("split.tensors.count", 5, (whole.tensors.len() as i32).to_le_bytes());
        change(number, &mut part);
        (name(number), part.bytes())
    };
    Files((1..=3).map(part).collect())
}

fn open(files: &Files, name: &str) -> Result<ModelFile, ModelError> {
    let source = files.open(name).unwrap().unwrap();
    ModelFile::open_beside(source, Some(&Beside { folder: files, name }))
}

/// An answer of the model: of all its weights.
fn answer(file: &ModelFile) -> Vec<u32> {
    let prompt = file.tokenizer().unwrap().encode("there", true).unwrap();
    let mut model = Whole::load(file, Pool::new(1), 64).unwrap();
    model.generate(&prompt, 12, &SamplingParams::default(), &[]).unwrap()
}

#[test]
fn parts_are_the_model_that_they_are_parts_of() {
    let whole = ModelFile::open(Arc::new(MemorySource(tiny().bytes()))).unwrap();
    let parts = open(&three(|_, _| {}), &name(1)).unwrap();
    assert_eq!(parts.layer_bytes(0), whole.layer_bytes(0));
    assert_eq!(answer(&parts), answer(&whole));
}

#[test]
fn parts_lie_beside_the_first_one() {
    let files = three(|_, _| {});
    let folder = std::env::temp_dir().join(format!("dunlin-parts-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in &files.0 {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let found = ModelFile::open_path(&folder.join(name(1))).map(|file| answer(&file));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found.unwrap(), answer(&open(&files, &name(1)).unwrap()));
}

#[test]
fn a_part_that_is_missing_or_wrong_is_named() {
    let refused = |files: &Files, given: &str, what: &str| {
        let error = open(files, given).err().unwrap().to_string();
        assert!(error.contains(what), "`{error}`, not `{what}`");
    };
    let all = three(|_, _| {});
    refused(&all, &name(2), "is part 2 of 3; give the first one, whose name ends in `-00001-of-00003.gguf`");
    let mut missing = all.clone();
    missing.0.remove(&name(3));
    refused(&missing, &name(1), "is part 1 of 3; part 3 is missing: put `m-00003-of-00003.gguf` beside it");
    let mut renamed = all.clone();
    let first = renamed.0.remove(&name(1)).unwrap();
    renamed.0.insert("m.gguf".to_owned(), first);
    refused(&renamed, "m.gguf", "its name must end in `-00001-of-00003.gguf`");
    let mut swapped = all.clone();
    swapped.0.insert(name(2), all.0[&name(3)].clone());
    refused(&swapped, &name(1), "by its name it is part 2 of 3, and it says that it is part 3 of 3");
    let mut stranger = all.clone();
    stranger.0.insert(name(2), tiny().bytes());
    refused(&stranger, &name(1), "it says that it is no part of anything");
    let twice = three(|_, part| part.tensors.push(tiny().tensors[0].clone()));
    refused(&twice, &name(1), "tensor `token_embd.weight`");
    let fewer = three(|number, part| {
        if number == 3 {
            part.tensors.pop();
        }
    });
    refused(&fewer, &name(1), "its parts have 10 tensors, and `split.tensors.count` is 11");
    let endless = three(|_, part| {
        part.set("split.count", 2, u16::MAX.to_le_bytes());
    });
    refused(&endless, &name(1), "up to 4096 parts are read");
}
