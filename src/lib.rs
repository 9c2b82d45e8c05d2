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
pub mod merkle;
pub mod object_table;
pub mod manifest;
pub mod signature;
pub mod keys;
pub mod chain;
pub mod manifest_check;
pub mod manifest_diff;
