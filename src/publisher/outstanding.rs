//! Owns: the count of a publisher's records that have not reached its level, for the report of a program that ends.

/// Accepted records that have not reached the publisher's level, by the acknowledgements up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// In the log file, but not at the publisher's level.
    pub in_log: u64,
    /// Not acknowledged. They are in this process and lost when it ends, unless storage has received them by then.
    pub unacknowledged: u64,
}

impl Outstanding {
    /// The total.
    pub fn total(&self) -> u64 {
        self.in_log + self.unacknowledged
    }
}
