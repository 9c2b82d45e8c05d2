mod lists;
mod manifest;
