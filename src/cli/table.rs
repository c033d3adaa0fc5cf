//! Plain aligned text for people. Pure: rows in, text out. Used by every subcommand that lists.

use chrono::{DateTime, Local};
use serde_json::Value;

/// Rows under a header.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(header: [&'static str; N]) -> Self {
        Self { header, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// One line a row. Columns of numbers are aligned right.
    pub(super) fn render(&self) -> String {
        let columns: [Column; N] = std::array::from_fn(|i| {
            Column::of(self.header[i], |visit| {
                self.rows.iter().for_each(|row| visit(&row[i]));
            })
        });
        let header = self.header.map(str::to_owned);
        std::iter::once(&header).chain(&self.rows).map(|row| line(&columns, row)).collect()
    }
}

/// Names and values, one pair a line.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter()
        .fold(String::new(), |text, (name, value)| text + &format!("{name:width$}  {value}\n"))
}

/// The fields of a JSON object as rows for [`pairs`]; none of anything else.
pub(super) fn fields(object: &Value) -> impl Iterator<Item = (&str, String)> {
    let fields = object.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.as_str(), value.to_string()))
}

struct Column {
    width: usize,
    is_numeric: bool,
}

impl Column {
    fn of(header: &str, cells: impl Fn(&mut dyn FnMut(&str))) -> Self {
        let mut width = header.chars().count();
        let mut is_numeric = true;
        cells(&mut |cell| {
            width = width.max(cell.chars().count());
            is_numeric &= cell == NONE || cell.starts_with(|c: char| c.is_ascii_digit());
        });
        Self { width, is_numeric }
    }
}

fn line(columns: &[Column], cells: &[String]) -> String {
    let mut line = String::new();
    for (Column { width, is_numeric }, cell) in columns.iter().zip(cells) {
        let cell = if *is_numeric { format!("{cell:>width$}") } else { format!("{cell:width$}") };
        line.push_str(&cell);
        line.push_str("  ");
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// What stands in a cell that has no value.
pub(super) const NONE: &str = "-";

/// The value, or [`NONE`].
pub(super) fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Local date and time of Unix milliseconds.
pub(super) fn time(unix_ms: i64) -> String {
    DateTime::from_timestamp_millis(unix_ms).map_or_else(
        || NONE.to_owned(),
        |time| time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// A span of time with its two largest units.
pub(super) fn span(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    match whole.as_secs() {
        0..10 => format!("{:.1} s", whole.as_secs_f64()),
        s @ 10..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let mut table = Table::new(["id", "state", "reason"]);
        table.row(["7".into(), "promoted".into(), String::new()]);
        table.row(["12".into(), "rejected".into(), "no gain".into()]);
        let text = "id  state     reason\n 7  promoted\n12  rejected  no gain\n";
        assert_eq!(table.render(), text);
    }

    #[test]
    fn a_column_is_as_wide_as_its_characters_not_its_bytes() {
        let mut table = Table::new(["name", "n"]);
        table.row(["prüfen".into(), "1".into()]);
        assert_eq!(table.render(), "name    n\nprüfen  1\n");
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(["id", "state"]).render(), "id  state\n");
    }

    #[test]
    fn names_and_values_line_up() {
        let text = pairs(&[("a", "1".into()), ("long", "2".into())]);
        assert_eq!(text, "a     1\nlong  2\n");
        assert_eq!(pairs(&[]), "");
    }

    #[test]
    fn a_span_has_two_units_at_most() {
        let spans = [0.04, 12.0, 75.0, 3720.0, 100_000.0].map(span);
        assert_eq!(spans, ["0.0 s", "12 s", "1 min 15 s", "1 h 2 min", "1 d 3 h"]);
        assert_eq!([f64::NAN, -1.0, f64::INFINITY].map(span), ["0.0 s"; 3]);
    }
}
