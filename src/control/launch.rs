//! From an open catalog to running shards, and back to an empty process.
//!
//! Knows threads, signals and the ring. Does not know where the catalog came from.

use std::net::SocketAddr;

use super::catalog::Catalog;
use super::error::Error;

/// What the data plane is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlane {
    /// Where to listen; port 0 asks for any free one.
    pub listen: Vec<SocketAddr>,
    /// Cores to run on; `None`: all this process may use.
    pub cores: Option<Vec<usize>>,
    /// How long a thread looks for work before it sleeps.
    pub spin_us: u32,
    /// The most bytes one send gathers.
    pub send_batch_bytes: usize,
    /// Golden data kept in memory, over all cores.
    pub golden_cache_bytes: u64,
}

/// Serves until SIGINT or SIGTERM. `listening` is called once all addresses are bound, with the real ports.
pub(super) fn run(
    catalog: Catalog,
    plane: &DataPlane,
    listening: &mut dyn FnMut(&[SocketAddr]),
) -> Result<(), Error> {
    let _ = (catalog, plane, listening);
    Err(Error::Failed("the data plane is not built yet".to_owned()))
}
