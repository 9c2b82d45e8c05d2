//! lakescrub removes the people who opted out from a data lake, and proves it.

// vocabulary
pub mod error;
pub mod identifier;
pub mod action;
pub mod meter;
pub mod parquet_bounds;
// where
pub mod toml_reader;
pub mod job;
pub mod store;
pub mod format;
pub mod dataset;
// who
pub mod request;
pub mod request_bytes;
pub mod request_cells;
pub mod request_frames;
pub mod request_lines;
pub mod request_text;
pub mod match_index;
// what
pub mod column_values;
pub mod find_parquet;
pub mod find;
pub mod plan;
pub mod journal;
pub mod rewrite;
// proof
pub mod verify_normalise;
pub mod verify_read;
pub mod verify_records;
pub mod verify_ndjson;
pub mod verify_list;
pub mod verify;
pub mod signature;
pub mod keys;
pub mod merkle;
pub mod tag;
pub mod object_table;
pub mod manifest;
pub mod chain;
pub mod manifest_check;
pub mod manifest_diff;
// wiring
pub mod account;
pub mod show;
pub mod progress;
pub mod cli;
pub mod run;
