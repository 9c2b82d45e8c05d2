//! Pages that hold something.
//!
//! Arrow's C++ library writes data pages without a value between others. The crate's column reader takes one for the end of the column
//! and gives what it has so far, of a list perhaps the half: rows would then be cut where none ends.

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::Result;

/// The pages of a reader without the data pages that hold nothing.
pub struct FilledPages<P>(pub P);

impl<P: PageReader> FilledPages<P> {
    fn pass_empty(&mut self) -> Result<()> {
        let is_empty = |page: &PageMetadata| !page.is_dict && page.num_levels == Some(0);
        while self.0.peek_next_page()?.as_ref().is_some_and(is_empty) {
            self.0.skip_next_page()?;
        }
        Ok(())
    }
}

impl<P: PageReader> Iterator for FilledPages<P> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<P: PageReader> PageReader for FilledPages<P> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        loop {
            match self.0.get_next_page()? {
                Some(page) if page.is_data_page() && page.num_values() == 0 => {}
                page => return Ok(page),
            }
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pass_empty()?;
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pass_empty()?;
        self.0.skip_next_page()
    }

    /// Whether the page that was read ends with a row: the last one that holds something does.
    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pass_empty()?;
        self.0.at_record_boundary()
    }
}
