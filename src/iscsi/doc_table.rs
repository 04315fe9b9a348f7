//! Tables in the docs of state machines, held against what the code does.
//!
//! Knows how a table is found in the text of a source file. Does not know what it says.

/// The cells of the table whose first header cell is `corner`: header first, without the line under it.
///
/// # Panics
/// When the text has no such table.
pub(crate) fn doc_table(source: &str, corner: &str) -> Vec<Vec<String>> {
    let rows = source.lines().map(|line| {
        let line = line.trim_start().trim_start_matches('/').trim_start_matches('!').trim();
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(inner.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>())
    });
    let found: Vec<Vec<String>> = rows
        .skip_while(|row| row.as_ref().is_none_or(|cells| cells.first().map(String::as_str) != Some(corner)))
        .map_while(|row| row)
        .filter(|cells| !cells.iter().all(|cell| cell.chars().all(|c| c == '-') && !cell.is_empty()))
        .collect();
    assert!(!found.is_empty(), "no table begins with {corner:?}");
    found
}

/// Compares the table in `source` with the one the code makes, and shows the latter when they differ.
///
/// # Panics
/// When they differ.
pub(crate) fn assert_doc_table(source: &str, corner: &str, made: &[Vec<String>]) {
    let written = doc_table(source, corner);
    let text = |rows: &[Vec<String>]| {
        rows.iter().map(|row| format!("| {} |", row.join(" | "))).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(text(&written), text(made), "the table of {corner:?} says otherwise than the code");
}

/// A table of what follows from each state (rows) by each event (columns); empty: nothing changes.
pub(crate) fn table<S: Copy, E: Copy>(
    corner: &str,
    (states, state_name): (&[S], fn(S) -> String),
    (events, event_name): (&[E], fn(E) -> String),
    cell: impl Fn(S, E) -> String,
) -> Vec<Vec<String>> {
    let mut rows = vec![
        core::iter::once(corner.to_owned())
            .chain(events.iter().map(|event| event_name(*event)))
            .collect::<Vec<_>>(),
    ];
    for state in states {
        let cells = events.iter().map(|event| cell(*state, *event));
        rows.push(core::iter::once(state_name(*state)).chain(cells).collect());
    }
    rows
}

mod tests {
    use super::*;

    #[test]
    fn a_table_is_found_by_its_corner_and_read_without_padding() {
        let source = "//! | other | x |\n//! text\n/// | a \\ b | `c`  |\n/// |-------|------|\n/// | d |   |\nfn x() {}\n";
        assert_eq!(doc_table(source, "a \\ b"), [["a \\ b", "c"], ["d", ""]]);
    }
}
