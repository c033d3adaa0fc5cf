//! Files of models and adapters, without any C: [`gguf`] reads, checks and writes GGUF, [`lora`] holds
//! adapters as GGUF and as PEFT folders, [`disk`] writes files so that none is ever half there.

pub mod disk;
pub mod gguf;
pub mod lora;

pub use disk::{Existing, hex, sha256, write_atomic, write_folder};
