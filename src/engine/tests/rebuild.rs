//! Owns: tests of SSTables that are rebuilt from the records of another host, on the simulated disk: power loss and failed calls
//! at every call, and records that are not the lost ones.

use super::backup::{records, store_of};
use super::*;
use crate::repair;
use crate::repair::rebuild::{Group, Rebuild, Rebuilt, Source};
use crate::repair::rows::{PeerRow, Wanted};
use crate::snapshot::backup::MARK;
use crate::snapshot::restore::LOST;
use crate::snapshot::{meta_of, state_of};
use tapestore::disk::Disk;
use tapestore::manifest::{Edit, Manifest};
use tapestore::record::index_time;
use tapestore::sstable::format::{TRAILER_LEN, Trailer};
use tapestore::sstable::{DIR, FileMeta, Origin, Spec, Table, Writer, file_name};

/// A row of the other host, which owns its record.
#[derive(Clone, Debug)]
struct Owned {
    instrument: InstrumentId,
    time: Ts,
    lsn: Lsn,
    ingest_ts: Ts,
    origin: Origin,
    record: Vec<u64>,
}

impl Owned {
    fn row(&self) -> PeerRow<'_> {
        PeerRow { lsn: self.lsn, ingest_ts: self.ingest_ts, origin: self.origin, record: &self.record }
    }
}

/// Records of a batch.
const BATCH: u64 = 60;
/// Records of the store.
const COUNT: u64 = 10 * BATCH;

fn batch(epoch: Epoch, first: u64) -> Vec<u64> {
    let one = |seq| Trade { trade_id: seq, instrument: InstrumentId(1 + (seq % 7) as u32), ..Trade::default() };
    assert!(epoch.0 > 0);
    (first..first + BATCH).flat_map(|seq| one(seq).words().to_vec()).collect()
}

/// A store of records of seven instruments in SSTables, some of them merged to runs of several files; and its records, sorted,
/// as another host has them.
fn started() -> (Run, Vec<Owned>) {
    let mut run = Run::new(1);
    let mut store = run.recover().unwrap();
    let (state, appended) = store.state.begin_epoch(PublisherId(1), 7, Epoch(0), Ts(1)).unwrap();
    store.syncer.sync(appended.end).unwrap();
    for n in 0..COUNT / BATCH {
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        let first = n * BATCH + 1;
        let header = BatchHeader::new(PublisherId(1), state.epoch, PubSeq(first), BATCH as u32);
        assert_eq!(store.state.accept(header, &batch(state.epoch, first)), BatchOutcome::Accepted);
        store.state.memtables.seal_soon();
        assert_eq!(store.state.is_ready().unwrap(), Readiness::Ready);
        run.clock.advance(1000);
        let committed = store.state.append(run.clock.wall()).unwrap().unwrap();
        if let Some(opened) = committed.appended.opened {
            store.syncer.opened(opened);
        }
        store.sealed.extend(committed.sealed);
        store.syncer.sync(committed.appended.end).unwrap();
        while file_one(&mut store).unwrap() {}
    }
    while compact_one(&mut store).unwrap() {}
    store.state.memtables.seal_soon();
    store.syncer.record().unwrap();
    drop(store);
    let rows = rows_of(&run.disk, &store_of(&run));
    run.clients[0] = Client { epoch: state.epoch, sent: COUNT, acked: COUNT };
    (run, rows)
}

fn files(disk: &SimDisk, store: &Path) -> Vec<FileMeta> {
    let meta = meta_of(disk, store).unwrap();
    state_of(disk, store, meta.store_id).unwrap().files.into_values().collect()
}

/// The rows of the SSTables, in the order in which another host sends them.
fn rows_of(disk: &SimDisk, store: &Path) -> Vec<Owned> {
    let mut rows = Vec::new();
    for file in files(disk, store) {
        let table = Table::open(disk, &store.join(DIR), file).unwrap();
        for lsn in (file.lsn.0.0..=file.lsn.1.0).map(Lsn) {
            let Some(place) = table.place_of(lsn).unwrap() else { continue };
            let mut record = Vec::new();
            table.row(place, &mut record).unwrap();
            let arrival = table.arrival(lsn).unwrap().unwrap();
            let (time, _) = index_time(Ts(record[2]), arrival.ingest_ts);
            let instrument = InstrumentId((record[0] >> 32) as u32);
            let origin = (arrival.publisher, arrival.epoch, arrival.pub_seq);
            rows.push(Owned { instrument, time, lsn, ingest_ts: arrival.ingest_ts, origin, record });
        }
    }
    rows.sort_by_key(|row| (row.instrument, row.time, row.lsn));
    rows
}

/// Sends those of `rows` that are wanted.
fn send(rows: &[Owned], wanted: &Wanted, give: &mut dyn FnMut(PeerRow<'_>) -> Result<()>) -> Result<()> {
    let is_wanted =
        |row: &&Owned| (wanted.lsn.0..=wanted.lsn.1).contains(&row.lsn) && (wanted.time.0..=wanted.time.1).contains(&row.time);
    rows.iter().filter(is_wanted).try_for_each(|row| give(row.row()))
}

fn mend_by(disk: &SimDisk, store: &Path, now: u64, source: &mut Source<'_, Error>) -> Result<(Vec<Rebuilt>, usize)> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut rebuild, groups, found) = Rebuild::open(&disk, store, &mut |_| {})?;
    assert!(found.log.is_none());
    let mut done = Vec::new();
    let mend = |group: &Group| rebuild.mend(group, Ts(now), source, &mut |_| {});
    groups.iter().map(mend).collect::<Result<Vec<_>>>()?.into_iter().for_each(|more| done.extend(more));
    Ok((done, groups.len()))
}

fn mend(disk: &SimDisk, store: &Path, now: u64, rows: &[Owned]) -> Result<(Vec<Rebuilt>, usize)> {
    mend_by(disk, store, now, &mut |wanted, give| send(rows, wanted, give))
}

fn damaged(disk: &SimDisk, store: &Path) -> usize {
    repair::examine(disk, store, &mut |_| {}).unwrap().damaged.len()
}

fn flip(disk: &SimDisk, path: &Path, at: usize) {
    let mut bytes = disk.contents(path).unwrap();
    bytes[at] ^= 1;
    disk.overwrite(path, bytes);
}

fn remove(disk: &SimDisk, path: &Path) {
    disk.remove(path).unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
}

/// All SSTables and the manifest, with their bytes.
fn contents(disk: &SimDisk, store: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let within = |dir: PathBuf| disk.list(&dir).unwrap().into_iter().map(move |n| dir.join(n)).collect::<Vec<_>>();
    let is_manifest = |p: &PathBuf| p.file_name().unwrap().to_str().is_some_and(|n| n.starts_with("manifest") || n == "CURRENT");
    let all = within(store.join(DIR)).into_iter().chain(within(store.to_path_buf()).into_iter().filter(is_manifest));
    all.map(|path| (path.clone(), disk.contents(&path).unwrap())).collect()
}

#[test]
fn a_lost_sstable_is_rebuilt_to_the_very_same_bytes_whatever_of_it_is_damaged() {
    let (mut run, rows) = started();
    let (store, base) = (store_of(&run), run.disk.fork());
    let (all, before) = (files(&run.disk, &store), contents(&run.disk, &store));
    let meets = |a: &FileMeta, b: &FileMeta| a.id < b.id && a.lsn.0 <= b.lsn.1 && b.lsn.0 <= a.lsn.1;
    let siblings = all.iter().flat_map(|a| all.iter().map(move |b| (a, b))).find(|(a, b)| meets(a, b));
    let siblings = siblings.expect("a run of several files");
    let path = |file: &FileMeta| store.join(DIR).join(file_name(file.kind, file.id));
    for file in &all {
        let len = file.len as usize;
        // A block, the LSN index or a filter, the trailer, the footer, every part of the file.
        for at in (0..len).step_by(len / 13).chain([len - 600, len - 20]) {
            run.disk = base.fork();
            flip(&run.disk, &path(file), at);
            if damaged(&run.disk, &store) == 0 {
                // Padding, which nobody reads.
                continue;
            }
            let (done, groups) = mend(&run.disk, &store, 9, &rows).unwrap_or_else(|e| panic!("{file:?} at {at}: {e}"));
            assert_eq!((groups, done), (1, vec![Rebuilt { lost: path(file), path: path(file) }]), "{file:?} at {at}");
            assert!(contents(&run.disk, &store) == before, "{file:?} at {at}");
            let lost = run.disk.list(&store.join(LOST)).unwrap();
            assert_eq!(lost, [format!("{}-9", file_name(file.kind, file.id))], "the damaged file is kept");
        }
        run.disk = base.fork();
        remove(&run.disk, &path(file));
        mend(&run.disk, &store, 9, &rows).unwrap();
        assert!(contents(&run.disk, &store) == before, "{file:?} removed");
        run.disk = base.fork();
        let mut bytes = run.disk.contents(&path(file)).unwrap();
        bytes.truncate(len / 2);
        run.disk.overwrite(&path(file), bytes);
        mend(&run.disk, &store, 9, &rows).unwrap();
        assert!(contents(&run.disk, &store) == before, "{file:?} half");
    }
    // Two files of one run: only their order says which row is in which.
    run.disk = base.fork();
    [siblings.0, siblings.1].into_iter().for_each(|file| remove(&run.disk, &path(file)));
    let (done, groups) = mend(&run.disk, &store, 9, &rows).unwrap();
    assert_eq!((done.len(), groups), (2, 1));
    assert!(contents(&run.disk, &store) == before, "two files of a run");
    // All files at once.
    run.disk = base.fork();
    all.iter().for_each(|file| remove(&run.disk, &path(file)));
    assert_eq!(mend(&run.disk, &store, 9, &rows).unwrap().0.len(), all.len());
    assert!(contents(&run.disk, &store) == before && !run.disk.exists(&store.join("rebuild")).unwrap(), "all files");
    let opened = run.recover().unwrap();
    assert_eq!(opened.started.records, COUNT);
}

/// Replaces `file` by one without the rows of `instrument`, as a merge does after their retention has ended.
fn expire(disk: &SimDisk, store: &Path, file: FileMeta, rows: &[Owned], instrument: InstrumentId) -> FileMeta {
    let meta = meta_of(disk, store).unwrap();
    let mut manifest = Manifest::open(Arc::new(disk.clone()), store, meta.store_id).unwrap();
    let table = Table::open(disk, &store.join(DIR), file).unwrap();
    let stays = |row: &&Owned| row.instrument != instrument && table.place_of(row.lsn).unwrap().is_some();
    let kept: Vec<&Owned> = rows.iter().filter(stays).collect();
    let schema = tapestore::record::schema(file.kind).unwrap();
    let spec = Spec { store_id: meta.store_id, id: manifest.take_id(), schema, window: file.window, stores_reserved: false };
    let mut writer = Writer::create(disk, &store.join(DIR), spec).unwrap();
    for series in kept.chunk_by(|a, b| a.instrument == b.instrument) {
        writer.begin_series(series[0].instrument, series.len() as u32).unwrap();
        series.iter().for_each(|row| writer.push(row.lsn, row.ingest_ts, &row.record).unwrap());
    }
    let origin = |lsn| kept.iter().find(|row| row.lsn == lsn).unwrap().origin;
    let new = writer.finish(origin).unwrap();
    disk.sync_dir(&store.join(DIR)).unwrap();
    let expired = file.rows - new.rows;
    manifest.edit(Edit { removed: vec![file.id], added: vec![new], expired, ..Edit::default() }).unwrap();
    remove(disk, &store.join(DIR).join(file_name(file.kind, file.id)));
    new
}

#[test]
fn rows_that_have_expired_here_are_not_brought_back_and_are_not_taken_for_others() {
    let (run, rows) = started();
    let store = store_of(&run);
    let file = files(&run.disk, &store)[0];
    let table = Table::open(&run.disk, &store.join(DIR), file).unwrap();
    let gone = table.series().unwrap()[0].instrument;
    drop(table);
    let file = expire(&run.disk, &store, file, &rows, gone);
    let path = store.join(DIR).join(file_name(file.kind, file.id));
    let before = contents(&run.disk, &store);
    // The other host still has them. The index of a damaged file names the rows that it had.
    flip(&run.disk, &path, 3000);
    assert_eq!(damaged(&run.disk, &store), 1);
    assert_eq!(mend(&run.disk, &store, 9, &rows).unwrap().0.len(), 1);
    assert!(contents(&run.disk, &store) == before);
    // Nothing names the rows of a file that is gone.
    remove(&run.disk, &path);
    let error = mend(&run.disk, &store, 9, &rows).unwrap_err().to_string();
    assert!(error.contains("more than the"), "{error}");
    assert_eq!(contents(&run.disk, &store).len(), before.len() - 1, "nothing was changed");
}

/// `record`, of another instrument.
fn of_instrument(record: &[u64], instrument: u64) -> Vec<u64> {
    let mut other = record.to_vec();
    other[0] = other[0] & 0xffff_ffff | instrument << 32;
    other
}

#[test]
fn a_rebuild_interrupted_at_any_call_is_undone_or_complete_and_the_same_command_finishes_it() {
    let (mut run, rows) = started();
    let store = store_of(&run);
    let all = files(&run.disk, &store);
    let before = contents(&run.disk, &store);
    let path = |file: &FileMeta| store.join(DIR).join(file_name(file.kind, file.id));
    flip(&run.disk, &path(&all[0]), 3000);
    remove(&run.disk, &path(&all[1]));
    let base = run.disk.fork();
    let start = run.disk.calls();
    mend(&run.disk, &store, 9, &rows).unwrap();
    let calls = run.disk.calls() - start;
    for fault in [Fault::PowerLoss, Fault::Once(ErrorKind::StorageFull)] {
        for call in 1..=calls {
            run.disk = base.fork();
            run.disk.set_fault(run.disk.calls() + call, fault);
            let outcome = mend(&run.disk, &store, 9, &rows);
            run.disk.set_fault(u64::MAX, Fault::PowerLoss);
            run.disk = run.disk.power_loss(call);
            let context = format!("{fault:?} at call {call}: {outcome:?}");
            let left = damaged(&run.disk, &store);
            assert!(left == 0 || left <= 2 && outcome.is_err(), "{context}: {left}");
            mend(&run.disk, &store, 10, &rows).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(contents(&run.disk, &store) == before, "{context}");
            let lost = run.disk.list(&store.join(LOST)).unwrap();
            assert!(lost.iter().any(|n| n.starts_with(&file_name(all[0].kind, all[0].id))), "{context}: {lost:?}");
            assert!(!run.disk.exists(&store.join("rebuild")).unwrap(), "{context}");
        }
    }
    let opened = run.recover().unwrap();
    assert_eq!(opened.started.records, COUNT);
}

/// Puts `file` in another form, as if another release had written it: one byte of its head, which says nothing of the records,
/// is another.
fn in_another_form(disk: &SimDisk, store: &Path, file: FileMeta) -> FileMeta {
    let path = store.join(DIR).join(file_name(file.kind, file.id));
    let mut bytes = disk.contents(&path).unwrap();
    let footer = u32::from_le_bytes(bytes[bytes.len() - 10..][..4].try_into().unwrap()) as usize;
    let at = bytes.len() - 10 - footer - TRAILER_LEN;
    let mut trailer = Trailer::parse(&bytes[at..]).unwrap();
    let head = trailer.head.len as usize;
    bytes[7] ^= 1;
    trailer.head.crc = crc32c::crc32c(&bytes[..head]);
    let crc = trailer.seal(&bytes[at + TRAILER_LEN..]);
    bytes[at..at + TRAILER_LEN].copy_from_slice(bytemuck::bytes_of(&trailer));
    disk.overwrite(&path, bytes);
    with_meta(disk, store, file, FileMeta { crc, ..file })
}

/// Changes the entry of `file` in the manifest to `other`.
fn with_meta(disk: &SimDisk, store: &Path, file: FileMeta, other: FileMeta) -> FileMeta {
    let meta = meta_of(disk, store).unwrap();
    let mut manifest = Manifest::open(Arc::new(disk.clone()), store, meta.store_id).unwrap();
    manifest.edit(Edit { removed: vec![file.id], added: vec![other], ..Edit::default() }).unwrap();
    other
}

#[test]
fn a_file_that_cannot_be_written_in_its_old_form_is_replaced_by_one_of_another_number() {
    let (mut run, rows) = started();
    let store = store_of(&run);
    let all = files(&run.disk, &store);
    let wanted = records(&run.disk, &store).unwrap();
    let path = store.join(DIR).join(file_name(all[0].kind, all[0].id));
    let other = in_another_form(&run.disk, &store, all[0]);
    assert_eq!(damaged(&run.disk, &store), 0, "it is sound");
    // Gone, with a length that the manifest says and that no file of this form has.
    let gone = run.disk.fork();
    with_meta(&gone, &store, other, FileMeta { len: other.len + 64, ..other });
    remove(&gone, &path);
    let (done, _) = mend(&gone, &store, 9, &rows).unwrap();
    assert!(done.len() == 1 && done[0].lost != done[0].path, "{done:?}");
    assert_eq!(records(&gone, &store).unwrap(), wanted);
    flip(&run.disk, &path, 3000);
    assert_eq!(damaged(&run.disk, &store), 1);
    // Other records are refused, although the form is another: instrument, publisher and LSN of each are known.
    let spoils: [fn(&mut Owned); 2] = [|row| row.origin.2.0 += 1, |row| row.instrument.0 += 100];
    for spoil in spoils {
        let mut rows = rows.clone();
        rows.iter_mut().filter(|row| row.lsn >= all[0].lsn.0).for_each(|row| {
            spoil(row);
            row.record = of_instrument(&row.record, u64::from(row.instrument.0));
        });
        let error = mend(&run.disk, &store, 9, &rows).unwrap_err().to_string();
        assert!(error.contains("differ from those of the lost file"), "{error}");
    }
    let base = run.disk.fork();
    let start = run.disk.calls();
    let (done, _) = mend(&run.disk, &store, 9, &rows).unwrap();
    let calls = run.disk.calls() - start;
    assert!(done.len() == 1 && done[0].lost != done[0].path, "{done:?}");
    for fault in [Fault::PowerLoss, Fault::Once(ErrorKind::StorageFull)] {
        for call in 1..=calls {
            run.disk = base.fork();
            run.disk.set_fault(run.disk.calls() + call, fault);
            let outcome = mend(&run.disk, &store, 9, &rows).map(drop);
            run.disk.set_fault(u64::MAX, Fault::PowerLoss);
            run.disk = run.disk.power_loss(call);
            let context = format!("{fault:?} at call {call}: {outcome:?}");
            // The manifest never names a file that is not there.
            let left = repair::examine(&run.disk, &store, &mut |_| {}).unwrap().damaged;
            assert!(left.iter().all(|(file, _)| *file == other) && left.len() < 2, "{context}: {left:?}");
            mend(&run.disk, &store, 10, &rows).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(damaged(&run.disk, &store), 0, "{context}");
            assert_eq!(records(&run.disk, &store).unwrap(), wanted, "{context}");
            let now = files(&run.disk, &store);
            let (lost, new) = (all[0], now.iter().max_by_key(|f| f.id).unwrap());
            assert!(all.iter().all(|f| f.id < new.id) && now.iter().all(|f| f.id != lost.id), "{context}");
            assert_eq!((new.rows, new.lsn, new.time, new.window), (lost.rows, lost.lsn, lost.time, lost.window), "{context}");
            let kept = run.disk.list(&store.join(LOST)).unwrap();
            assert!(kept.iter().any(|n| n.starts_with(&file_name(lost.kind, lost.id))), "{context}: {kept:?}");
            if call % 7 == 0 {
                std::fs::remove_dir_all(run.run_dir()).ok();
                let opened = run.recover().unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(opened.started.records, COUNT);
            }
        }
    }
}

#[test]
fn records_that_are_not_the_lost_ones_change_nothing() {
    let (run, rows) = started();
    let store = store_of(&run);
    let file = files(&run.disk, &store)[0];
    remove(&run.disk, &store.join(DIR).join(file_name(file.kind, file.id)));
    let before = contents(&run.disk, &store);
    let mine: Vec<usize> = (0..rows.len()).filter(|i| (file.lsn.0..=file.lsn.1).contains(&rows[*i].lsn)).collect();
    let refused = |why: &str, spoil: &dyn Fn(&mut Vec<Owned>)| {
        let mut rows = rows.clone();
        spoil(&mut rows);
        let error = mend(&run.disk, &store, 9, &rows).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(why), "{why}: {error}");
        assert!(contents(&run.disk, &store) == before && !run.disk.exists(&store.join("rebuild")).unwrap(), "{why}");
        assert!(!run.disk.exists(&store.join(LOST)).unwrap(), "{why}");
    };
    let (first, last) = (mine[0], mine[mine.len() - 1]);
    refused("are lost", &|rows| drop(rows.remove(first)));
    refused("not after the record before it", &|rows| rows.swap(first, last));
    refused("unknown", &|rows| rows[first].record[0] |= 0xffff);
    refused("instead of a record of kind", &|rows| rows[first].record.push(0));
    refused("two with the LSN", &|rows| {
        let twice = rows[mine[1]].lsn;
        rows[first].lsn = twice;
        rows[first].instrument = InstrumentId(0);
        rows[first].record = of_instrument(&rows[first].record, 0);
    });
    // A host that ends in the middle.
    let mut left = 3;
    let cut = mend_by(&run.disk, &store, 9, &mut |wanted, give| {
        send(&rows, wanted, &mut |row| {
            left -= 1;
            if left == 0 { Err(Error::invalid("host", "it is gone".to_owned())) } else { give(row) }
        })
    });
    assert!(cut.unwrap_err().to_string().contains("it is gone"));
    assert!(contents(&run.disk, &store) == before);
    // Other bytes of a record, under the right numbers.
    refused("their bytes differ", &|rows| rows[first].record[3] ^= 1);
}

#[test]
fn a_served_store_and_a_backup_are_refused() {
    let (run, rows) = started();
    let store = store_of(&run);
    let lock = run.disk.lock(&store.join(tapestore::disk::LOCK)).unwrap().unwrap();
    assert!(matches!(mend(&run.disk, &store, 9, &rows), Err(Error::Locked { .. })));
    drop(lock);
    assert_eq!(mend(&run.disk, &store, 9, &rows).unwrap(), (Vec::new(), 0));
    tapestore::disk::publish(&run.disk, &store.join(MARK), b"of a store").unwrap();
    assert!(matches!(mend(&run.disk, &store, 9, &rows), Err(Error::Backup { .. })));
}
