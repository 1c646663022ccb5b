//! Data to stdout, told apart from progress (stderr). Text of peers and models is cleaned before a terminal sees it.

use std::io::{self, Write};

use serde::Serialize;

/// Writes `text` and a line break to stdout.
///
/// # Errors
/// [`io::ErrorKind::BrokenPipe`] when the reader went away (`opengrid ls | head -1`), which is no failure.
pub fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref().as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()?;
    Ok(())
}

/// Writes `value` as indented JSON.
///
/// # Errors
/// As [`line`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Text from outside without control characters: no peer or model may move the cursor, colour the screen or set the
/// window's title. Line breaks and tabs stay.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !is_harmful(*c)).collect()
}

/// Control characters, and the marks that reorder text (Unicode TR 36, "bidirectional text spoofing").
fn is_harmful(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Rows in columns as wide as their widest cell; a heading row in capitals. `right`: which columns hold numbers.
pub fn table(headings: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| one_cell(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let heading: Vec<String> = headings.iter().map(|text| text.to_uppercase()).collect();
    let lines = std::iter::once(&heading).chain(&rows).map(|row| table_line(row, &widths, right));
    lines.collect::<Vec<_>>().join("\n")
}

fn one_cell(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

fn table_line(row: &[String], widths: &[usize], right: &[bool]) -> String {
    let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
        let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
        if right.get(column).copied().unwrap_or(false) { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
    });
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// `name  value` lines, the names padded to one width.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines = rows.iter().map(|(name, value)| format!("{name:width$}  {}", one_cell(value)).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// `98.4 MB`: three digits and a decimal unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    if count < 1_000 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `3 d 4 h`, `2 h 5 min`, `1 min 7 s`, `9 s`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mred\u{7}\u{9b}2J\r\u{202e}b\n\tc"), "a[31mred2Jb\n\tc");
        let text = table(&["name"], &[false], &[vec!["x\u{1b}]0;t\u{7}\ny".into()]]);
        assert_eq!(text, "NAME\nx]0;t y");
    }

    #[test]
    fn tables_align_numbers_to_the_right() {
        let rows = [vec!["a".into(), "10".into()], vec!["long".into(), "7".into()]];
        assert_eq!(table(&["id", "n"], &[false, true], &rows), "ID     N\na     10\nlong   7");
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2");
    }

    #[test]
    fn amounts_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (98_362_432, "98.4 MB"),
            (999_600_000, "1.00 GB"),
            (123_456_789_000, "123 GB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(67), "1 min 7 s");
        assert_eq!(duration(7_500), "2 h 5 min");
        assert_eq!(duration(273_600), "3 d 4 h");
    }
}
