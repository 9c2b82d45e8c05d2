//! One integration binary, so that DataFusion and Polars are linked once.

mod architecture;
mod cases;
mod ceph;
mod cli;
mod crash;
#[path = "../support/damage.rs"]
mod damage;
mod deadlines;
mod drop;
#[path = "../support/fault_proxy.rs"]
mod fault_proxy;
#[path = "../support/fault_store.rs"]
mod fault_store;
mod faults;
mod find;
mod fuzz;
mod gate;
#[path = "../support/lakescrub.rs"]
mod lakescrub_runner;
mod ledger;
mod lists;
mod manifest;
#[path = "../support/memory_store.rs"]
mod memory_store;
mod page_copy;
mod privacy;
mod requests;
mod rewrite_odd;
mod rewrite_parquet;
mod s3;
mod s3_faults;
mod s3_scrub;
#[path = "../support/s3_server.rs"]
mod s3_server;
mod s3_splice;
mod stages;
mod verify;
mod verify_catches;
mod versions;
