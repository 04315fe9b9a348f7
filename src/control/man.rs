//! `goldrush man`: a manual page for the program and for each of its subcommands.
//!
//! Knows how a page is put together and named. The words are those of `--help` (`cli`, `cli_help`).

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use super::cli::{Cli, ManArgs};
use super::error::{Error, print};

const SECTION: &str = "1";

/// Runs the command: writes all pages into the folder, replacing older ones.
pub(super) fn run(args: &ManArgs) -> Result<(), Error> {
    std::fs::create_dir_all(&args.folder).map_err(Error::io(&args.folder, "creating the folder"))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let pages = pages(&program, &args.folder)?;
    print(|out| writeln!(out, "{}: {pages} manual pages", args.folder.display()))
}

/// The pages of a command and of those below it; how many.
fn pages(command: &clap::Command, folder: &Path) -> Result<usize, Error> {
    // A built command knows its place: "goldrush-image-check".
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let path = folder.join(format!("{name}.{SECTION}"));
    let page = page(command).map_err(Error::io(&path, "composing"))?;
    std::fs::write(&path, page).map_err(Error::io(&path, "writing"))?;
    let mut written = 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        written += pages(below, folder)?;
    }
    Ok(written)
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone().version(env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let after = command.get_after_long_help().or(command.get_after_help());
    sections(&after.map(ToString::to_string).unwrap_or_default(), &mut page)?;
    Ok(page)
}

/// Sections of `cli_help` as headings with literal text.
fn sections(text: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let mut literal = false;
    for line in text.lines() {
        let heading = line.strip_suffix(':').filter(|line| !line.starts_with(' '));
        if let Some(heading) = heading {
            if literal {
                writeln!(page, ".fi")?;
            }
            writeln!(page, ".SH {}\n.nf", escaped(&heading.to_uppercase()))?;
            literal = true;
        } else if !line.trim().is_empty() {
            writeln!(page, "{}", escaped(line.strip_prefix("  ").unwrap_or(line)))?;
        } else if literal {
            writeln!(page)?;
        }
    }
    if literal {
        writeln!(page, ".fi")?;
    }
    Ok(())
}

/// Text that roff prints as it stands: no escapes, no requests, hyphens that can be copied.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_become_headings_and_literal_lines() {
        let mut page = Vec::new();
        sections("Examples:\n  a --b\n  .c\\d\n\nExit codes:\n  0  done\n", &mut page).unwrap();
        let expected = ".SH EXAMPLES\n.nf\na \\-\\-b\n\\&.c\\ed\n\n.fi\n.SH EXIT CODES\n.nf\n0  done\n.fi\n";
        assert_eq!(String::from_utf8(page).unwrap(), expected);
    }

    #[test]
    fn every_command_has_a_page_and_every_image_command_examples_and_exit_codes() {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Cli::command().disable_help_subcommand(true);
        program.build();
        let written = pages(&program, folder.path()).unwrap();
        assert!(written >= 8, "{written}");
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let page = std::fs::read_to_string(&path).unwrap();
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{}", path.display());
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.starts_with("goldrush-image-") {
                assert!(page.contains(".SH EXAMPLES") && page.contains(".SH EXIT CODES"), "{name}");
            }
        }
    }
}
