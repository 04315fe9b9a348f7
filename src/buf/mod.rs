//! To be written.
#[derive(Debug)]
pub struct Buf;
#[derive(Debug, Clone)]
pub struct BufRef;
