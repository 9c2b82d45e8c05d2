//! lakescrub removes the people who opted out from a data lake, and proves it.

// vocabulary
pub mod error;
pub mod identifier;
pub mod action;
pub mod meter;
// who
pub mod request;
pub mod request_bytes;
pub mod request_cells;
pub mod request_frames;
pub mod request_lines;
pub mod request_text;
// where
pub mod store;
pub mod format;
pub mod toml_reader;
pub mod job;
pub mod dataset;
