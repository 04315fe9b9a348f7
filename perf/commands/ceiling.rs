//! `perf ceiling`: runs the ceiling responder for a bounded time.
//!
//! Knows its arguments. Does not know how it answers.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Args;

use crate::ceiling::{Ceiling, Setup, TARGET};
use crate::fail::Result;
use crate::load::parse_bytes;
use crate::ring;

#[derive(Debug, Args)]
pub(crate) struct CeilingArgs {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Run on this core only
    #[arg(long, value_name = "CORE")]
    pub(crate) pin: Option<usize>,
    /// Size of the disk, which is memory
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256m")]
    pub(crate) memory: u64,
    /// Most bytes in one send
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "1m")]
    pub(crate) send: u64,
    /// Poll for so many microseconds before sleeping
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub(crate) spin_us: u64,
    /// Stop by itself after so many seconds
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) seconds: u64,
    /// Stop when the process that started this one ends
    #[arg(long)]
    pub(crate) with_parent: bool,
}

pub(crate) fn run(args: &CeilingArgs) -> Result<()> {
    if args.with_parent {
        ring::die_with_parent();
    }
    if let Some(core) = args.pin {
        ring::pin(core)?;
    }
    let setup = Setup {
        listen: args.listen,
        memory: (args.memory as usize).next_multiple_of(4096),
        send_bytes: args.send as usize,
        spin: Duration::from_micros(args.spin_us),
    };
    let ceiling = Ceiling::bind(setup)?;
    let address = ceiling.address()?;
    println!("listening on {address}");
    println!("iscsi://{address}/{TARGET}/0");
    ceiling.run(Instant::now() + Duration::from_secs(args.seconds), &AtomicBool::new(false))
}
