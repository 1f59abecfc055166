//! Owns: the tables of `tape top` and their columns.

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Table {
    /// The attached publishers.
    Publishers,
    /// The instruments that come most often.
    Instruments,
    /// The processes that map files of the store, with what they pin.
    Processes,
    /// The hosts of the cluster.
    Peers,
    /// Records by kind.
    Kinds,
}

/// A column: its name, its width, and whether it is a number.
pub type Column = (&'static str, u16, bool);

impl Table {
    /// All tables.
    pub const ALL: [Table; 5] = [Table::Publishers, Table::Instruments, Table::Processes, Table::Peers, Table::Kinds];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Table::Publishers => "publishers",
            Table::Instruments => "instruments",
            Table::Processes => "processes",
            Table::Peers => "peers",
            Table::Kinds => "kinds",
        }
    }

    /// The table `by` places after this one.
    #[must_use]
    pub fn next(self, by: usize) -> Table {
        let at = (self as usize + by) % Table::ALL.len();
        Table::ALL.get(at).copied().unwrap_or(self)
    }

    /// Its columns.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Table::Publishers => &[
                ("number", 7, true),
                ("process", 8, true),
                ("records/s", 11, true),
                ("records", 14, true),
                ("unsynced", 9, true),
                ("gaps", 5, true),
                ("newest", 8, true),
                ("state", 9, false),
            ],
            Table::Instruments => &[("instrument", 28, false), ("records/s", 12, true), ("share", 8, true)],
            Table::Processes => &[
                ("process", 8, true),
                ("program", 18, false),
                ("does", 12, false),
                ("pinned", 11, true),
                ("maps", 11, true),
                ("files", 7, true),
            ],
            Table::Peers => &[
                ("host", 4, true),
                ("address", 21, false),
                ("votes", 5, false),
                ("state", 14, false),
                ("lag records", 11, true),
                ("lag bytes", 9, true),
                ("lag", 9, true),
            ],
            Table::Kinds => &[("kind", 16, false), ("records/s", 12, true), ("records", 18, true)],
        }
    }

    /// The column that orders it at first.
    pub fn first_order(self) -> usize {
        match self {
            Table::Publishers => 2,
            Table::Processes => 3,
            Table::Instruments | Table::Kinds => 1,
            Table::Peers => 0,
        }
    }

    /// Why it is empty.
    pub fn empty(self) -> &'static str {
        match self {
            Table::Publishers => "no publisher is attached",
            Table::Instruments => "no record came in the last interval",
            Table::Processes => "no process of this user maps the store",
            Table::Peers => "the store is in no cluster, or storage does not answer",
            Table::Kinds => "no record since the start of storage",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_an_order_that_is_one_of_its_columns_and_fits_80_columns() {
        for table in Table::ALL {
            assert!(table.first_order() < table.columns().len(), "{table:?}");
            let width: u16 = table.columns().iter().map(|(_, width, _)| width + 1).sum();
            assert!(width <= 81, "{table:?}: {width}");
            assert_eq!(table.next(Table::ALL.len()), table);
        }
    }
}
