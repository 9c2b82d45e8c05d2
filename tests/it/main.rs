//! One integration binary, so that DataFusion and Polars are linked once.

mod find;
mod lists;
mod manifest;
#[path = "../support/memory_store.rs"]
mod memory_store;
mod rewrite_parquet;
mod verify;
