//! One integration binary, so that DataFusion and Polars are linked once.

mod architecture;
mod cases;
mod cli;
mod crash;
#[path = "../support/lakescrub.rs"]
mod lakescrub_runner;
mod lists;
mod manifest;
#[path = "../support/memory_store.rs"]
mod memory_store;
mod privacy;
mod rewrite_parquet;
mod stages;
mod verify;
