//! The subcommands: arguments into plans, results into tables.
//!
//! Knows what a person types and sees. Does not know how anything is measured.

pub(crate) mod ceiling;
pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod load;
pub(crate) mod probe;
pub(crate) mod table;
