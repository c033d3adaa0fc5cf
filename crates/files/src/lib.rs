//! Files of models and adapters, without any C: [`gguf`] reads, checks and writes GGUF, [`lora`]
//! holds adapters as GGUF and as PEFT folders, [`disk`] writes files atomically, [`memory`] says
//! how much memory is free for them, [`load`] how busy the machine is.

pub mod disk;
pub mod gguf;
pub mod load;
pub mod lora;
pub mod memory;

pub use disk::{Existing, hex, rename_new, sha256, write_atomic, write_folder};
