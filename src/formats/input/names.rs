//! Owns: the instruments of an input, numbered from 0 in the order in which they are met.

use std::collections::HashMap;

use tapestore::record::Name;

use crate::error::Fault;

/// Instruments by name and number.
#[derive(Default)]
pub(super) struct Names {
    names: Vec<Name>,
    numbers: HashMap<Name, u32>,
    /// The text that was asked for last, and its number: rows of an instrument come one after the other.
    last: (String, u32),
}

impl Names {
    /// The number of the instrument called `text`.
    ///
    /// # Errors
    /// That it is no name.
    pub(super) fn number(&mut self, text: &str) -> Result<u32, Fault> {
        if !self.names.is_empty() && self.last.0 == text {
            return Ok(self.last.1);
        }
        let name: Name = text.parse()?;
        let number = *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() as u32 - 1
        });
        self.last = (text.to_owned(), number);
        Ok(number)
    }

    /// All of them, by number.
    pub(super) fn all(&self) -> &[Name] {
        &self.names
    }
}
