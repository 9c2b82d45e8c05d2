//! stub
use super::*;
#[derive(Debug, Clone)]
pub struct ParquetReceipt {
    pub counts: Receipt,
}
pub fn rewrite(_: &ObjectReader, _: &Edit<'_>, _: &mut (dyn io::Write + Send)) -> Result<ParquetReceipt, FormatError> {
    Err(FormatError::Unsupported("stub".into()))
}
pub fn read_back(_: &ObjectReader, _: &ParquetReceipt) -> Result<(), FormatError> {
    Err(FormatError::Unsupported("stub".into()))
}
