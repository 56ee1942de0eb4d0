//! Which faults of a plan come in a row.

/// Rows that one plan may name.
const MAX_ROWS: usize = 4;

/// Lengths of rows of faults, in turn, and how far they have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    lengths: heapless::Vec<u32, MAX_ROWS>,
    row: usize,
    /// Faults of the present row so far.
    done: u32,
}

impl Rows {
    /// Each fault on its own.
    pub fn single() -> Self {
        Self { lengths: heapless::Vec::from_array([1]), row: 0, done: 0 }
    }

    /// Reads lengths from 1 up, `+` between them; `None`: something else, or too many.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rows = Self { lengths: heapless::Vec::new(), ..Self::single() };
        for length in text.split('+') {
            let length = length.parse().ok().filter(|length| *length > 0)?;
            rows.lengths.push(length).ok()?;
        }
        Some(rows)
    }

    /// Whether the next fault is the first of a row.
    pub fn begins(&self) -> bool {
        self.done == 0
    }

    /// Counts a fault; whether another one follows in the same row. After the last row comes the
    /// first again.
    pub fn advance(&mut self) -> bool {
        self.done += 1;
        let goes_on = self.done < self.lengths[self.row];
        if !goes_on {
            (self.row, self.done) = ((self.row + 1) % self.lengths.len(), 0);
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_turn() {
        let mut rows = Rows::parse("1+3").unwrap();
        let marks: Vec<_> = (0..6).map(|_| (rows.begins(), rows.advance())).collect();
        let row = [(true, false), (true, true), (false, true), (false, false)];
        assert_eq!(marks[..4], row);
        assert_eq!(marks[4..], row[..2]);
        assert!(Rows::single().begins() && !Rows::single().advance());
        for wrong in ["", "0", "2+", "1+1+1+1+1"] {
            assert_eq!(Rows::parse(wrong), None, "{wrong:?}");
        }
    }
}
