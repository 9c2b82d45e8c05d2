//! lakescrub removes the people who opted out from a data lake, and proves it.

// vocabulary
pub mod error;
pub mod identifier;
pub mod action;
pub mod meter;
// where
pub mod store;
pub mod format;
pub mod toml_reader;
pub mod job;
pub mod dataset;
// proof
pub mod verify_normalise;
pub mod verify_read;
pub mod verify_records;
pub mod verify_ndjson;
pub mod verify_list;
pub mod verify;
