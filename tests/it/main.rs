//! Integration tests, in one binary: each module tests one thing through the public interfaces.
#![allow(unreachable_pub)] // A test binary exports nothing.

mod blocking;
mod chain_desk;
mod cli;
mod cli_admission;
mod cli_chain_change;
mod cli_chain_kill;
mod cli_chain_look;
mod cli_config;
mod cli_control;
mod cli_corpus;
mod cli_durability;
mod cli_explain;
mod cli_foreign;
mod cli_image;
mod cli_masking;
mod cli_repair;
mod cli_reservations;
mod cli_reshape;
mod cli_seal;
mod cli_serve;
mod cli_status;
mod conformance;
mod golden_threads;
mod hostile;
mod journal_crash;
mod journal_world;
mod offload;
mod oracles;
mod raw_initiator;
mod running;
mod sector_history;
mod sessions;
mod sim_disk;
mod sim_journal;
#[cfg(feature = "perf")]
mod storm;
mod vhd_corpus;
mod vhd_crash;
mod vhd_edit;
mod vhd_repair;
mod vhd_world;
mod vhdx_corpus;
mod vhdx_files;
mod vhdx_oracles;
mod vhdx_tool;
