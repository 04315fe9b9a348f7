//! The command line of the `image` commands that work on chains, as types.
//!
//! Knows what may be written there. Does not know what any of it does.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

#[derive(Debug, Args)]
pub struct MapArgs {
    /// The image: all its parents are looked at as well
    pub path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// One image
    pub a: PathBuf,
    /// The other
    pub b: PathBuf,
    /// Say nothing: the exit code tells, at the first difference
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SealArgs {
    /// The image: a regular file
    pub path: PathBuf,
    /// Read all of a sealed image and compare, whatever its time stamps say
    #[arg(long)]
    pub verify: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct UnsealArgs {
    /// The image
    pub path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The child; it is not changed but for what it knows its parent by
    pub path: PathBuf,
    /// Leave the parent as it is, and make this new image of child and parent
    #[arg(long, value_name = "NEW")]
    pub into: Option<PathBuf>,
    /// Remove the child when its parent has everything
    #[arg(long)]
    pub remove_child: bool,
    /// Merge although other children of the parent, or children of the child, lie beside them: their disks are destroyed
    #[arg(long)]
    pub break_other_children: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct FlattenArgs {
    /// The child
    pub path: PathBuf,
    /// Write the independent image here, and leave the child as it is
    #[arg(long, value_name = "NEW")]
    pub output: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RebaseArgs {
    /// The child
    pub path: PathBuf,
    /// Its new parent
    #[arg(long, value_name = "IMAGE")]
    pub parent: PathBuf,
    /// Copy what differs between the parents into the child first, instead of refusing
    #[arg(long)]
    pub copy: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("how").required(true).args(["child", "name"])))]
pub struct SnapshotArgs {
    /// The image to freeze
    pub path: PathBuf,
    /// Go on in this new child; the image keeps its name
    #[arg(long, value_name = "NEW")]
    pub child: Option<PathBuf>,
    /// Give the frozen state this name, in the same folder; the image goes on under its own
    #[arg(long, value_name = "FROZEN")]
    pub name: Option<PathBuf>,
    /// Seal the frozen image
    #[arg(long)]
    pub seal: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
