//! Tables for people: columns as wide as their widest cell, two blanks apart, no blanks at the ends of lines.
//!
//! Widths are counted before cells are colored, and in characters; names of wide characters come last in a line.

use crate::color::Style;
use crate::text::printable;

/// Where a column's text stands.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A piece of a line.
pub(crate) struct Cell {
    text: String,
    style: Style,
}

/// `text` in this style, safe for terminals.
pub(crate) fn cell(text: impl AsRef<str>, style: Style) -> Cell {
    Cell { text: printable(text.as_ref()), style }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        cell(text, Style::Plain)
    }
}

/// Rows of cells.
pub(crate) struct Table {
    columns: Vec<Align>,
    indent: usize,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(columns: impl Into<Vec<Align>>) -> Self {
        Self { columns: columns.into(), indent: 0, rows: Vec::new() }
    }

    /// A list of facts: what it is, and its value.
    pub(crate) fn of_facts() -> Self {
        Self::new([Align::Left, Align::Left])
    }

    /// Moves all of it to the right.
    pub(crate) fn indented(mut self, blanks: usize) -> Self {
        self.indent = blanks;
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// A row of a list of facts.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Cell>) {
        self.row([cell(name, Style::Faint), value.into()]);
    }

    /// Its lines, without an end of line at the end.
    pub(crate) fn text(&self, is_colored: bool) -> String {
        let width_of = |cell: &Cell| cell.text.chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| self.rows.iter().filter_map(|row| row.get(at)).map(width_of).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<Cell>| {
            let mut line = " ".repeat(self.indent);
            let mut gap = 0;
            // A column that is empty everywhere takes no room.
            let columns = self.columns.iter().zip(&widths).filter(|(_, width)| **width > 0);
            let cells = row.iter().zip(&widths).filter(|(_, width)| **width > 0).map(|(cell, _)| cell);
            for (cell, (align, width)) in cells.zip(columns) {
                let blanks = width - width_of(cell);
                let (before, after) = match align {
                    Align::Left => (0, blanks),
                    Align::Right => (blanks, 0),
                };
                // Blanks are only written when something comes behind them.
                if cell.text.is_empty() {
                    gap += width + 2;
                } else {
                    line += &" ".repeat(gap + before);
                    line += &if is_colored { cell.style.paint(&cell.text) } else { cell.text.clone() };
                    gap = after + 2;
                }
            }
            line
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let [left, right] = [Align::Left, Align::Right];
        let mut table = Table::new([right, left, left, left]).indented(1);
        table.row(["n".into(), "".into(), "state".into(), "label".into()]);
        table.row(["100".into(), "".into(), cell("", Style::Bad), "x\u{1b}y".into()]);
        table.row(["7".into(), "".into(), cell("open", Style::Good), "".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        assert_eq!(example().text(false), "   n  state  label\n 100         x\\u{1b}y\n   7  open");
    }

    /// Goal: color changes no column. Method: the same text remains when the sequences are taken out.
    #[test]
    fn color_does_not_move_anything() {
        let colored = example().text(true);
        assert!(colored.contains("\x1b[32mopen\x1b[0m"), "{colored:?}");
        let plain = colored.replace("\x1b[32m", "").replace("\x1b[0m", "");
        assert_eq!(plain, example().text(false));
    }
}
