//! The subcommands: arguments into plans, results into tables.
//!
//! Knows what a person types and sees. Does not know how anything is measured.

pub(crate) mod ceiling;
pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod fair;
mod folder;
pub(crate) mod histogram;
pub(crate) mod load;
mod named;
pub(crate) mod probe;
pub(crate) mod sessions;
pub(crate) mod storm;
mod storm_report;
pub(crate) mod table;
