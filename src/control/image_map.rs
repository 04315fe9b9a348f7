//! `goldrush image map`: which layer of a chain holds which range of the disk.
//!
//! Knows what to show. Does not know how it is found (`chain_runs`); changes nothing.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::chain_runs::{ChainRuns, DiskRun, Place};
use super::cli_chain::MapArgs;
use super::error::{Error, print};
use super::file::{Access, Locking};
use super::json_stream::JsonStream;
use super::open_image::{OpenedChain, Opener};
use super::progress::Progress;
use super::size::human;

#[derive(Debug, Serialize)]
struct Layer {
    layer: usize,
    path: String,
    format: &'static str,
}

#[derive(Debug, Serialize)]
struct Row {
    offset: u64,
    length: u64,
    kind: &'static str,
    layer: Option<usize>,
    file_offset: Option<u64>,
}

/// Bytes of the disk that a layer answers for.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Total {
    layer: usize,
    data: u64,
    hole: u64,
}

#[derive(Debug)]
struct Totals {
    layers: Vec<Total>,
    zero: u64,
}

/// Runs the command.
pub(super) fn run(args: &MapArgs) -> Result<(), Error> {
    let chain = Opener::anywhere(Locking::Hold).open_chain(&args.path, Access::ReadOnly)?;
    let layers = layers(&chain);
    let runs = ChainRuns::new(chain)?;
    if args.json { json(&args.path, &layers, runs) } else { text(&args.path, &layers, runs) }
}

fn layers(chain: &OpenedChain) -> Vec<Layer> {
    let layers = chain.layers().iter().enumerate();
    let path = |layer: &super::open_image::OpenedLayer| layer.file().path().display().to_string();
    layers
        .map(|(depth, layer)| Layer { layer: depth, path: path(layer), format: layer.format().name() })
        .collect()
}

impl Row {
    fn of(run: &DiskRun) -> Self {
        let (kind, file_offset) = match &run.place {
            Place::Data { offset, .. } => ("data", Some(*offset)),
            Place::Hole { offset, .. } => ("hole", Some(*offset)),
            Place::Zeros { .. } | Place::Nothing => ("zero", None),
        };
        Self { offset: run.start, length: run.len, kind, layer: run.depth(), file_offset }
    }
}

impl Totals {
    fn new(layers: usize) -> Self {
        let layers = (0..layers).map(|layer| Total { layer, ..Total::default() }).collect();
        Self { layers, zero: 0 }
    }

    fn add(&mut self, run: &DiskRun) {
        match (&run.place, run.depth().and_then(|depth| self.layers.get_mut(depth))) {
            (Place::Data { .. }, Some(total)) => total.data += run.len,
            (Place::Hole { .. } | Place::Zeros { .. }, Some(total)) => total.hole += run.len,
            _ => self.zero += run.len,
        }
    }
}

/// Hands every run to `show`. A reader of our output that has gone away ends it.
fn each(
    path: &Path,
    layers: usize,
    mut runs: ChainRuns,
    show: &mut dyn FnMut(&DiskRun) -> io::Result<()>,
) -> Result<Totals, Error> {
    let progress = Progress::new("mapping", path, runs.bytes());
    let mut totals = Totals::new(layers);
    while let Some(run) = runs.next()? {
        totals.add(&run);
        show(&run).map_err(Error::output)?;
        progress.set(run.end());
    }
    progress.finish();
    Ok(totals)
}

fn json(path: &Path, layers: &[Layer], runs: ChainRuns) -> Result<(), Error> {
    print_all(|out| {
        let mut stream = JsonStream::new(out).map_err(Error::output)?;
        let size = runs.bytes();
        let head = stream.member("layers", &layers).and_then(|()| stream.member("virtual_size", &size));
        head.and_then(|()| stream.list("map")).map_err(Error::output)?;
        let totals = each(path, layers.len(), runs, &mut |run| stream.element(&Row::of(run)))?;
        let tail = stream.member("totals", &totals.layers).and_then(|()| stream.member("zero", &totals.zero));
        tail.and_then(|()| stream.finish()).map_err(Error::output)
    })
}

fn text(path: &Path, layers: &[Layer], runs: ChainRuns) -> Result<(), Error> {
    print_all(|out| {
        writeln!(out, "{:>16} {:>16} {:<5} {:>5} {:>16}", "offset", "length", "kind", "layer", "file offset")
            .map_err(Error::output)?;
        let totals = each(path, layers.len(), runs, &mut |run| {
            let Row { offset, length, kind, layer, file_offset } = Row::of(run);
            let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
            let layer = number(layer.map(|layer| layer as u64));
            writeln!(out, "{offset:>16} {length:>16} {kind:<5} {layer:>5} {:>16}", number(file_offset))
        })?;
        for (layer, total) in layers.iter().zip(&totals.layers) {
            let (data, hole) = (human(total.data), human(total.hole));
            let Layer { layer, path, format } = layer;
            writeln!(out, "layer {layer}: {path} ({format}): {data} of data, {hole} of holes")
                .map_err(Error::output)?;
        }
        writeln!(out, "no layer: {} of zeros", human(totals.zero)).map_err(Error::output)
    })
}

/// As [`print`], for output that is made while it is written, through a buffer.
pub(super) fn print_all(write: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    let mut result = Ok(());
    print(|out| {
        let mut out = io::BufWriter::with_capacity(64 << 10, out);
        result = write(&mut out);
        match &result {
            Err(Error::Output(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            _ => out.flush(),
        }
    })?;
    match result {
        // The reader has what it wanted.
        Err(Error::Output(_)) => Ok(()),
        other => other,
    }
}
