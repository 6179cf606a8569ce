//! Tables for people: columns as wide as what is in them, and the words in which times and sizes are said.

use jiff::Timestamp;

/// Lines of a table, its heading first.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let heading: Vec<String> = heading.iter().map(|&name| name.to_owned()).collect();
    let lines = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| {
        let cells = lines().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells = cells.map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    lines().map(line).collect()
}

/// How long ago, as kubectl says it.
pub(super) fn age(since: Timestamp, now: Timestamp) -> String {
    duration(now.as_second() - since.as_second())
}

/// Seconds, in the two largest units that matter.
pub(super) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => format!("{minutes}m{}s", seconds % 60),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 48 => format!("{hours}h"),
        () => format!("{days}d"),
    }
}

/// A cell that has nothing to say.
pub(super) fn or_dash(cell: Option<String>) -> String {
    cell.filter(|cell| !cell.is_empty())
        .unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_no_line_ends_in_spaces() {
        let rows = [
            vec!["a".into(), "long cell".into()],
            vec!["wider".into(), String::new()],
        ];
        assert_eq!(
            table(&["X", "Y"], &rows),
            ["X       Y", "a       long cell", "wider"]
        );
    }

    #[test]
    fn ages_are_said_as_kubectl_says_them() {
        let said = [-3, 0, 119, 120, 599, 600, 10_799, 10_800, 172_799, 172_800].map(duration);
        let wanted = [
            "0s", "0s", "119s", "2m0s", "9m59s", "10m", "179m", "3h", "47h", "2d",
        ];
        assert_eq!(said, wanted);
    }
}
