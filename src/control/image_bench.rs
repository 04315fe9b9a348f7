//! `goldrush image bench`: what writing into a child costs here, beside writing into a plain file.
//!
//! Knows the scratch files and the report. Does not know how operations are run (`bench_round`).

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bench_cases::{Case, Shape};
use super::bench_round::{Bench, Pair};
use super::bench_scratch::Scratch;
use super::cli::{DiskKind, ImageFormat};
use super::cli_bench::BenchArgs;
use super::error::{Error, print};
use super::file::{Access, Locking, folder_of};
use super::image_create::write_new;
use super::new_image::{NewDisk, Wanted};
use super::open_image::{Format, OpenedChain, OpenedLayer, Opener};
use super::progress::Progress;
use super::size::{Size, human};
use crate::vhd::VhdImage;
use crate::vhd::create::BLOCK_BYTES_DEFAULT;
use crate::vhdx::create::CHILD_BLOCK_BYTES_DEFAULT;

/// The disk that the scratch child in a folder has.
const DISK_BYTES: u64 = 16 << 30;
const SIZE_MIN: u64 = 16 << 20;
const SIZE_MAX: u64 = 64 << 30;
/// One block is used for so many bytes of the measured size: 8192 blocks with the usual one.
const BLOCK_SHARE: u64 = 32 << 10;

#[derive(Debug, Serialize)]
struct BenchReport {
    path: String,
    format: &'static str,
    block_size: u64,
    /// Bytes of the disk that are written to.
    size: u64,
    queue_depth: u32,
    rotations: usize,
    journal: bool,
    cases: Vec<CaseReport>,
}

#[derive(Debug, Serialize)]
struct CaseReport {
    name: &'static str,
    bytes: u64,
    child_per_s: f64,
    plain_per_s: f64,
    /// How fast the child is, of the plain file.
    ratio: f64,
    child_cpu_us: f64,
    plain_cpu_us: f64,
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs) -> Result<(), Error> {
    if !(SIZE_MIN..=SIZE_MAX).contains(&args.size.0) {
        let (least, most) = (Size(SIZE_MIN), Size(SIZE_MAX));
        return Err(Error::Usage(format!("--size {} is out of range: {least} to {most}", args.size)));
    }
    let is_folder = std::fs::metadata(&args.path).map_err(Error::io(&args.path, "looking at it"))?.is_dir();
    let inside = if is_folder { args.path.clone() } else { folder_of(&args.path).to_owned() };
    // A user's image is opened first: what is wrong with it is said before anything is made.
    let given = if is_folder { None } else { Some(parent(&args.path)?) };
    let scratch = Scratch::new(&inside)?;
    let (parent_path, chain) = match given {
        Some(chain) => {
            refuse_format(args)?;
            (args.path.clone(), chain)
        }
        None => own_parent(args, &scratch)?,
    };
    let (format, shape) = (chain.leaf().format(), shape(args, &chain)?);
    let bench = Bench::new(&scratch, &parent_path, format.name(), shape, args.queue_depth)?;
    let pairs = measure(args, &bench)?;
    let report = BenchReport {
        path: args.path.display().to_string(),
        format: format.name(),
        block_size: shape.block_bytes,
        size: shape.size,
        queue_depth: args.queue_depth,
        rotations: pairs.len() / Case::ALL.len(),
        journal: bench.has_journal(),
        cases: Case::ALL.into_iter().map(|case| summary(case, &pairs)).collect(),
    };
    print(|out| write(out, &report, args.json))
}

fn measure(args: &BenchArgs, bench: &Bench<'_>) -> Result<Vec<Pair>, Error> {
    let limit = Duration::from_secs(u64::from(args.seconds));
    // The first round makes the files that all of them use, which does not count.
    let begun: Cell<Option<Instant>> = Cell::new(None);
    let is_over = |begun: Option<Instant>| begun.is_some_and(|begun| begun.elapsed() >= limit);
    let mut pairs = Vec::new();
    while !is_over(begun.get()) {
        let progress = Progress::new("measuring", &args.path, u64::from(bench.shape.rotations()));
        bench.round(&progress, &mut |pair| pairs.push(pair), &|| {
            let since = begun.get().unwrap_or_else(Instant::now);
            begun.set(Some(since));
            is_over(Some(since))
        })?;
        progress.finish();
    }
    Ok(pairs)
}

fn parent(path: &Path) -> Result<OpenedChain, Error> {
    let chain = Opener::anywhere(Locking::Hold).open_chain(path, Access::ReadOnly)?;
    if chain.leaf().format() == Format::Raw {
        return Err(Error::Failed(format!(
            "{} is a raw image, which has no children: name its folder instead",
            path.display()
        )));
    }
    Ok(chain)
}

fn refuse_format(args: &BenchArgs) -> Result<(), Error> {
    match args.format {
        None => Ok(()),
        Some(_) => {
            Err(Error::Usage("--format goes with a folder: a child has its parent's format".to_owned()))
        }
    }
}

/// An empty parent in the scratch folder.
fn own_parent(args: &BenchArgs, scratch: &Scratch) -> Result<(PathBuf, OpenedChain), Error> {
    let size = Size(DISK_BYTES.max(2 * args.size.0));
    let wanted = Wanted { size, kind: DiskKind::Dynamic, block_size: None, logical_sector: None };
    let (name, disk) = match args.format {
        Some(ImageFormat::Raw) => {
            return Err(Error::Usage("a raw image has no children: measure vhd or vhdx".to_owned()));
        }
        Some(ImageFormat::Vhdx) => ("parent.vhdx", NewDisk::vhdx(&wanted)?),
        Some(ImageFormat::Vhd) | None => ("parent.vhd", NewDisk::vhd(&wanted)?),
    };
    let path = scratch.path(name);
    write_new(&path, &disk)?;
    let chain = parent(&path)?;
    Ok((path, chain))
}

fn shape(args: &BenchArgs, chain: &OpenedChain) -> Result<Shape, Error> {
    let block_bytes = u64::from(child_block_size(chain.leaf()));
    let disk = chain.sectors().bytes().0;
    if disk < 4 * SIZE_MIN || disk / block_bytes < 32 {
        return Err(Error::Failed(format!(
            "{} has a disk of {}: too small to measure on, name its folder instead",
            args.path.display(),
            human(disk)
        )));
    }
    let down = |number: u64| 1 << (63 - number.max(1).leading_zeros());
    let size = down(args.size.0.min(disk / 2));
    Ok(Shape { size, block_bytes, blocks: down((disk / block_bytes).min(size / BLOCK_SHARE)) })
}

/// Of a child as `image create` makes it.
fn child_block_size(parent: &OpenedLayer) -> u32 {
    match parent.vhdx() {
        Some(_) => CHILD_BLOCK_BYTES_DEFAULT,
        None => parent.image().and_then(VhdImage::block_size).unwrap_or(BLOCK_BYTES_DEFAULT),
    }
}

fn summary(case: Case, pairs: &[Pair]) -> CaseReport {
    let of = |what: &dyn Fn(&Pair) -> f64| {
        median(pairs.iter().filter(|pair| pair.case == case).map(what).collect())
    };
    let per_s = |ns: f64| 1e9 / ns.max(1.0);
    CaseReport {
        name: case.name(),
        bytes: case.bytes(),
        child_per_s: per_s(of(&|pair| pair.child.wall_ns)),
        plain_per_s: per_s(of(&|pair| pair.plain.wall_ns)),
        ratio: of(&|pair| pair.plain.wall_ns / pair.child.wall_ns.max(1.0)),
        child_cpu_us: of(&|pair| pair.child.cpu_ns) / 1e3,
        plain_cpu_us: of(&|pair| pair.plain.cpu_ns) / 1e3,
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let (low, high) = (numbers.len().saturating_sub(1) / 2, numbers.len() / 2);
    match (numbers.get(low), numbers.get(high)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => 0.0,
    }
}

fn write(out: &mut dyn io::Write, report: &BenchReport, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, report)?;
        return writeln!(out);
    }
    let journal = if report.journal { "a journal" } else { "no journal: first writes wait for the disk" };
    writeln!(
        out,
        "{}: child {} with blocks of {}, {} of it, queue depth {}, {} rotations, {journal}",
        report.path,
        report.format,
        human(report.block_size),
        human(report.size),
        report.queue_depth,
        report.rotations
    )?;
    let heads = ["child/s", "plain/s", "ratio", "child cpu us", "plain cpu us"];
    let [child, plain, ratio, child_cpu, plain_cpu] = heads;
    writeln!(out, "{:<30}{child:>10}{plain:>10}{ratio:>8}{child_cpu:>14}{plain_cpu:>14}", "")?;
    for case in &report.cases {
        let CaseReport { name, child_per_s, plain_per_s, ratio, child_cpu_us, plain_cpu_us, .. } = case;
        writeln!(
            out,
            "{name:<30}{child_per_s:>10.0}{plain_per_s:>10.0}{ratio:>8.2}{child_cpu_us:>14.2}{plain_cpu_us:>14.2}"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn both_formats_are_measured_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        for format in [ImageFormat::Vhd, ImageFormat::Vhdx] {
            let args = BenchArgs {
                path: folder.path().to_owned(),
                size: Size(SIZE_MIN),
                queue_depth: 8,
                seconds: 0,
                format: Some(format),
                json: true,
            };
            run(&args).unwrap();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
