//! One integration binary, so that DataFusion and Polars are linked once.

mod cases;
mod cli;
mod crash;
#[path = "../support/damage.rs"]
mod damage;
#[path = "../support/fault_store.rs"]
mod fault_store;
mod faults;
mod fuzz;
#[path = "../support/lakescrub.rs"]
mod lakescrub_runner;
mod lists;
mod manifest;
#[path = "../support/memory_store.rs"]
mod memory_store;
mod rewrite_parquet;
mod verify;
