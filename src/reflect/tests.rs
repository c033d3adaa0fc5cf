//! The flow of reflection against the fake engine and a real store.
