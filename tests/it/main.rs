#[path = "../support/memory_store.rs"]
mod memory_store;
mod verify;
