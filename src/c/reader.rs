//! Owns: access to a store from C.

use std::path::Path;

use tapestore::record::schemas_named;
use tapestore::{InstrumentId, Name};

use crate::options;
use crate::pointers::{Buffer, Count, Out, Text, given, made};
use crate::snapshot::Snapshot;
use crate::status::{Failure, Status, call};

/// Access to a store, served or at rest. Opened by `tapestore_reader_open`, ended by `tapestore_reader_close`.
pub struct Reader(tapestore::Reader);

/// Opens the store in the directory `store`: by its shared memory while a storage process serves it, else by its files. Both
/// are only read.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_open(store: Text<'_>, reader: Out<'_, Option<Box<Reader>>>) -> Status {
    call(|| made(reader, "reader", || Ok(Reader(tapestore::Reader::open(Path::new(store.get("store")?))?))))
}

/// Whether the store is read from its files, because no storage process serves it.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_is_at_rest(reader: Option<&Reader>, is_at_rest: Out<'_, bool>) -> Status {
    call(|| {
        given(is_at_rest, "is_at_rest")?.write(given(reader, "reader")?.0.is_at_rest());
        Ok(Status::Ok)
    })
}

/// The number of the instrument called `name`, or `TAPESTORE_NO_INSTRUMENT`.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_instrument(reader: Option<&mut Reader>, name: Text<'_>, instrument: Out<'_, u32>) -> Status {
    call(|| {
        let (reader, instrument) = (given(reader, "reader")?, given(instrument, "instrument")?);
        let name: Name = name.get("name")?.parse()?;
        instrument.write(reader.0.instrument(&name)?.0);
        Ok(Status::Ok)
    })
}

/// The name of an instrument, ended by a zero, or `TAPESTORE_NO_INSTRUMENT`. `TAPESTORE_NAME_BYTES` are enough for any name.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_instrument_name(
    reader: Option<&mut Reader>,
    instrument: u32,
    name: Buffer<'_>,
    bytes: Count,
) -> Status {
    call(|| {
        let found = given(reader, "reader")?.0.symbols()?.name(InstrumentId(instrument));
        let none = || Failure::new(Status::NoInstrument, format!("the store has no instrument {instrument}"));
        name.put(found.ok_or_else(none)?.as_str(), bytes, "name")?;
        Ok(Status::Ok)
    })
}

/// The number of the kind called `name`, built in or defined by a program, or `TAPESTORE_NO_KIND`. Where several layouts have
/// one name, write the number too: `signal-8001`.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_kind(reader: Option<&mut Reader>, name: Text<'_>, kind: Out<'_, u16>) -> Status {
    call(|| {
        let (reader, kind) = (given(reader, "reader")?, given(kind, "kind")?);
        reader.0.kinds()?;
        let name = name.get("name")?;
        match schemas_named(name).as_slice() {
            [] => return Err(Failure::new(Status::NoKind, format!("the store has no kind '{name}'"))),
            [found] => kind.write(found.kind.0),
            several => {
                let numbers: Vec<String> = several.iter().map(|s| format!("{name}-{:x}", s.kind.0)).collect();
                let reason = format!("'{name}' is several kinds: {}", numbers.join(", "));
                return Err(Failure::new(Status::Invalid, reason));
            }
        };
        Ok(Status::Ok)
    })
}

/// The whole store now, up to `at`, a `tapestore_at`.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_snapshot(
    reader: Option<&mut Reader>,
    at: u32,
    snapshot: Out<'_, Option<Box<Snapshot>>>,
) -> Status {
    call(|| {
        made(snapshot, "snapshot", || {
            let reader = given(reader, "reader")?;
            Ok(Snapshot(reader.0.snapshot(options::at(at, "at")?)?))
        })
    })
}

/// Ends a reader. Its snapshots stay valid. NULL is accepted.
#[unsafe(no_mangle)]
pub extern "C" fn tapestore_reader_close(reader: Option<Box<Reader>>) {
    call(|| {
        drop(reader);
        Ok(Status::Ok)
    });
}
