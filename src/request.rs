//! placeholder until merged
use crate::job::ListSpec;
pub struct Entry<'a> {
    pub list: &'a ListSpec,
    pub cells: &'a [Option<&'a [u8]>],
}
