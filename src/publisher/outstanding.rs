//! Owns: how many of the records that a publisher took have not come as far as its level asks: what a program that ends
//! has to say of them.

/// Records that a publisher took and whose level is not reached, by what has been acknowledged up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// In the log file, and not yet at the publisher's level.
    pub in_log: u64,
    /// Not acknowledged at all. They are in this process, and lost when it ends, unless storage had received them by then.
    pub unacknowledged: u64,
}

impl Outstanding {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.in_log + self.unacknowledged
    }
}
