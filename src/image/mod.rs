//! Images: the seam between SCSI and the formats.
//!
//! Knows layers, chains of layers, and how a range of a chain falls into extents of files. Does not know how a file
//! is read or written, who asks, or what a CDB is.

pub mod chain;
pub mod fuzz;
pub mod images;
pub mod layer;
mod leaf;
pub mod single;
mod write;

pub use chain::{Chain, ChainError};
pub use images::Images;
pub use layer::Layer;
pub use single::LayerRun;
