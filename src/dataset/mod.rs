//! What belongs to a dataset: one file per way of finding out. A plain listing now, table formats later.

pub mod listing;
