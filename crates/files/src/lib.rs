//! Files of models and adapters, without any C: [`gguf`] reads, checks and writes GGUF, [`lora`] holds
//! adapters as GGUF and as PEFT folders, [`disk`] writes files so that none is ever half there,
//! [`memory`] knows what room there is for them.

pub mod disk;
pub mod gguf;
pub mod lora;
pub mod memory;

pub use disk::{Existing, hex, rename_new, sha256, write_atomic, write_folder};
