//! Owns: the record that a program in C begins with.

use tapestore::record::{Kind, WORDS_MAX, schema};

use crate::pointers::{Count, Space};
use crate::status::{Failure, Status, call};

/// Sets all of a record's bytes: its kind to `kind`, each field that has a null to its null, the others to zero. Then set the
/// fields that the record has. Zero is a value: a price that stays zero is published as a price of zero. `bytes` is the size of
/// the kind's struct; another size is `TAPESTORE_INVALID`. A kind of a program's own is accepted after a publisher or a reader
/// of its store was opened.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_record_init(kind: u16, record: Space<'_>, bytes: Count) -> Status {
    call(|| {
        let schema = schema(Kind(kind)).ok_or_else(|| Failure::no_kind(kind))?;
        let absent: [u64; WORDS_MAX] = schema.absent();
        let absent = absent.get(..schema.words).unwrap_or_default();
        record.put(bytemuck::cast_slice(absent), bytes, "record")?;
        Ok(Status::Ok)
    })
}

#[cfg(test)]
mod tests {
    use tapestore::record::{
        self, Bar1d, Bar1h, Bar1m, Bar1s, BookOrder, Bust, Correct, Definition, Depth10, Gap, Imbalance, Mapping, Quote, Record,
        SCHEMAS, Statistic, Trade,
    };

    use super::*;

    fn default_of<T: Record + Default>() -> (Kind, Vec<u8>) {
        (T::KIND, bytemuck::bytes_of(&T::default()).to_vec())
    }

    #[test]
    fn a_record_of_c_begins_as_the_default_of_its_struct_in_rust() {
        let defaults = [
            default_of::<Trade>(),
            default_of::<Quote>(),
            default_of::<BookOrder>(),
            default_of::<Definition>(),
            default_of::<Gap>(),
            default_of::<Depth10>(),
            default_of::<Bar1s>(),
            default_of::<Bar1m>(),
            default_of::<Bar1h>(),
            default_of::<Bar1d>(),
            default_of::<record::Status>(),
            default_of::<Imbalance>(),
            default_of::<Statistic>(),
            default_of::<Bust>(),
            default_of::<Correct>(),
            default_of::<Mapping>(),
        ];
        assert!(defaults.iter().map(|d| d.0).eq(SCHEMAS.iter().map(|s| s.kind)), "every built-in kind is tried");
        for (kind, default) in defaults {
            // The record need not be aligned, and nothing beside it is written.
            let mut bytes = vec![0x5a; default.len() + 2];
            let status = Space::with(&mut bytes[1..=default.len()], |space, count| tapestore_record_init(kind.0, space, count));
            assert_eq!(status, Status::Ok);
            assert_eq!(bytes, [&[0x5a], &default[..], &[0x5a]].concat(), "kind {}", kind.0);
        }
    }
}
