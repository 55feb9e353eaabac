//! Small model files built by hand, and a look at what reading them allocates.
#![allow(dead_code, reason = "each test uses a part")]

pub mod allocations;
pub mod gguf;
pub mod model_folder;
pub mod smollm2;
pub mod training;
pub mod vocabulary;
