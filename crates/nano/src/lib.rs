//! The embedded default: a small world of arithmetic word problems, the corpora in the project's
//! own prompts, and the tokenizer of the nano model that is trained on them from scratch.
//! Pure: seeds in, text and token ids out. Used by the trainer's `pretrain`, by `demo` and tests.

pub mod corpus;
pub mod prompts;
pub mod tokenizer;
pub mod world;
