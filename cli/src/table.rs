//! Aligned columns, as wide as the terminal and no wider.

use console::{measure_text_width, truncate_str};

/// Colours and width of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dress {
    /// Whether to colour.
    pub colour: bool,
    /// Columns of the terminal; `None` for unlimited.
    pub width: Option<usize>,
}

impl Dress {
    /// Text in a style, if colours are on.
    pub(crate) fn paint(&self, text: &str, style: console::Style) -> String {
        style.force_styling(self.colour).apply_to(text).to_string()
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint(text, console::Style::new().bold())
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint(text, console::Style::new().dim())
    }

    pub(crate) fn green(&self, text: &str) -> String {
        self.paint(text, console::Style::new().green())
    }
}

const GAP: usize = 3;
/// Least width of the last column, however narrow the terminal is.
const LEAST_LAST: usize = 12;
/// Room for `cam-1[0-14]→edge-1[15-32]`.
const ROOM_FOR_PATH: usize = 26;

/// A head and rows; the last column takes the rest of the line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    indent: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            indent: 0,
            rows: vec![head.map(str::to_owned).to_vec()],
        }
    }

    pub(crate) fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    pub(crate) fn add<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.to_vec());
    }

    /// Leaves a column out.
    pub(crate) fn drop_column(&mut self, name: &str) {
        let at = self
            .rows
            .first()
            .and_then(|head| head.iter().position(|h| h == name));
        if let Some(at) = at {
            for row in &mut self.rows {
                row.remove(at);
            }
        }
    }

    /// Drops columns, in the given order, until the last one has room for a short path.
    pub(crate) fn fit(&mut self, dress: &Dress, least_useful: &[&str]) {
        let Some(width) = dress.width else {
            return;
        };
        for name in least_useful {
            if self.before_last() + ROOM_FOR_PATH <= width {
                return;
            }
            self.drop_column(name);
        }
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| {
            let cells = self.rows.iter().map(|row| measure_text_width(&row[c]));
            cells.max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }

    /// Columns of the terminal before the last column of the table.
    fn before_last(&self) -> usize {
        let widths = self.widths();
        let others = widths.len().saturating_sub(1);
        widths.iter().take(others).map(|w| w + GAP).sum::<usize>() + self.indent
    }

    /// The lines. The first row of the body is the best one: `best` colours it.
    pub(crate) fn lines(&self, dress: &Dress, best: bool) -> Vec<String> {
        let widths = self.widths();
        let columns = widths.len();
        let left = dress
            .width
            .map(|w| w.saturating_sub(self.before_last()).max(LEAST_LAST));
        let line = |row: &Vec<String>| {
            let mut line = " ".repeat(self.indent);
            for (c, cell) in row.iter().enumerate() {
                if c + 1 < columns {
                    let pad = widths[c] + GAP - measure_text_width(cell);
                    line.push_str(cell);
                    line.push_str(&" ".repeat(pad));
                } else if let Some(left) = left {
                    line.push_str(&truncate_str(cell, left, "…"));
                } else {
                    line.push_str(cell);
                }
            }
            line.trim_end().to_owned()
        };
        let painted = self.rows.iter().enumerate().map(|(i, row)| match i {
            0 => dress.bold(&line(row)),
            1 if best => dress.green(&line(row)),
            _ => line(row),
        });
        painted.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["A", "LONGER", "PATH"]);
        table.add([
            "1".into(),
            "2 µs".into(),
            "cam-1[0-14]→edge-1[15-32]".into(),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned_and_the_last_one_fits_the_terminal() {
        let free = table().lines(&Dress::default(), false);
        assert_eq!(free[0], "A   LONGER   PATH");
        assert_eq!(free[1], "1   2 µs     cam-1[0-14]→edge-1[15-32]");
        let narrow = Dress {
            width: Some(30),
            colour: false,
        };
        let lines = table().lines(&narrow, false);
        assert_eq!(lines[1], "1   2 µs     cam-1[0-14]→edge…");
        assert_eq!(measure_text_width(&lines[1]), 30);
    }

    #[test]
    fn colours_change_no_width_and_are_left_out_when_unwanted() {
        let dress = Dress {
            colour: true,
            width: None,
        };
        let lines = table().lines(&dress, true);
        assert!(lines[1].contains("\u{1b}["));
        assert_eq!(measure_text_width(&lines[1]), 38);
        assert!(!table().lines(&Dress::default(), true)[1].contains('\u{1b}'));
    }
}
