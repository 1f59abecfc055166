//! Owns: recovery: it rebuilds the state that the agents run from a store's directory, or refuses with the next command.
//!
//! What must hold: one process per store, by a lock that the kernel releases. Everything rebuilt is durable before a
//! watermark covers it. The timeline rises before a reader can see a watermark fall.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::flush::{self, Flusher};
use super::memtables::{Maker, MemTables, Sealed, Source};
use super::options::{Options, World};
use super::state::{Rebuilt, StoreState};
use super::{boot_check, clock, history, space};
use crate::consensus::frames::Frames;
use crate::consensus::{Change, Node, Work};
use crate::snapshot::{backup, install};
use tapestore::disk::{Disk, absolute};
use tapestore::error::{Error, Result};
use tapestore::lsn::{FrameIndex, Lsn, Timeline};
use tapestore::manifest::{self, Manifest};
use tapestore::shm::bell::Bells;
use tapestore::shm::control::Control;
use tapestore::shm::kinds::KindsWriter;
use tapestore::shm::run_dir::RunDir;
use tapestore::shm::spill;
use tapestore::shm::symbols::SymbolsWriter;
use tapestore::wal::{self, Body, DurableMark, FrameType, Log, MetaFile};

/// The result of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Number of the start.
    pub instance: u64,
    /// Records of the store.
    pub records: u64,
    /// Of these, records in SSTables.
    pub flushed: u64,
    /// SSTables.
    pub files: u64,
    /// Bytes of log that were read after the checkpoint.
    pub log_bytes: u64,
    /// Whether the previous process stopped cleanly.
    pub was_clean: bool,
    /// The torn tail that was truncated above the durable log, and why; `None` if there was none.
    pub truncated: Option<String>,
    /// Bytes of a MemTable.
    pub memtable_size: u64,
}

/// A recovered store, before its agents run. A simulation drives it by hand.
pub struct Recovered {
    /// The options, checked.
    pub options: Options,
    /// The state.
    pub state: StoreState,
    /// Syncs the log.
    pub syncer: wal::Syncer,
    /// `store.meta`.
    pub meta: MetaFile,
    /// The control page.
    pub control: Control,
    /// Flushes MemTables.
    pub flusher: Flusher,
    /// MemTables that wait for a flush, the oldest first.
    pub sealed: VecDeque<Box<Sealed>>,
    /// This host in its cluster.
    pub node: Node,
    /// The result of the start.
    pub started: Started,
    pub(super) run_dir: RunDir,
    pub(super) maker: Maker,
    pub(super) lock: Box<dyn Send + Sync>,
}

impl Recovered {
    /// Shows on the control page that this process serves the store. For a simulation, which drives the state by hand.
    #[doc(hidden)]
    pub fn announce(&self) {
        let server = (u64::from(std::process::id()), self.meta.meta().term, self.control.started());
        self.control.set_server(Some(server));
        self.control.set_instance(self.started.instance);
    }
}

/// Opens `store.meta` and the manifest of the store in `dir`. Creates both if there is no store; finishes the install of
/// another host's snapshot if one had begun.
fn open_files(disk: &Arc<dyn Disk>, dir: &Path, options: &Options, world: &World) -> Result<(wal::Meta, Manifest)> {
    let table = options.memtable_size.max(tapestore::memtable::format::LEN_MIN);
    space::make_room(disk.as_ref(), dir, |total| space::keep_free(options.space_min, total, options.segment_size, table))?;
    install::finish(disk.as_ref(), dir)?;
    let create = wal::Create { store_id: world.store_id, segment_size: options.segment_size, now: world.clock.wall() };
    wal::create_if_absent(disk.as_ref(), dir, create)?;
    let known = wal::meta::read(disk.as_ref(), dir)?;
    let Some(known) = known else { return Err(Error::Missing { path: dir.join(wal::meta::NAME), what: "it was there" }) };
    history::create_dir(disk.as_ref(), dir)?;
    let manifest = Manifest::open(disk.clone(), dir, known.store_id)?;
    Ok((known, manifest))
}

/// Removes files that were never renamed to their names, or that remain beside the renamed file after a loss of power.
fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> Result<()> {
    for name in [wal::meta::NAME, crate::consensus::meta::NAME, tapestore::manifest::format::CURRENT] {
        let unfinished = dir.join(name).with_extension("tmp");
        if disk.exists(&unfinished)? {
            disk.remove(&unfinished)?;
        }
    }
    Ok(())
}

/// Opens the control page; creates it again if it is not one of this store: only this process writes it.
fn control_page(run_dir: &RunDir, store_id: u128) -> Result<Control> {
    let path = run_dir.control();
    match Control::open_or_create(&path, store_id) {
        Err(error @ (Error::Foreign { .. } | Error::Version { .. })) => {
            tracing::warn!(
                name: "shm.control_page_replaced", %error,
                "the control page in shared memory cannot be used; it is created again"
            );
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            Control::open_or_create(&path, store_id)
        }
        other => other,
    }
}

/// Settings for making MemTables.
fn maker(run_dir: &RunDir, instance: u64, store_id: u128, options: &Options) -> Maker {
    let (len, is_sparse) = (options.memtable_size, options.sparse_memtables);
    Maker { run_dir: run_dir.clone(), instance, store_id, len, is_sparse, spills: Arc::default() }
}

/// The MemTables of a start, the first of which begins at `base`; the next ones are made while the log is read.
fn memtables(maker: &Maker, control: &Control, base: Lsn, edit: u64, options: &Options) -> Result<MemTables> {
    let mut memtables = MemTables::new(maker.clone(), control.clone(), base, options.memtables_max, edit)?;
    if !options.sparse_memtables {
        let beside = Source::beside(maker.clone()).map_err(|e| Error::io("start a thread of", &options.store, e))?;
        memtables.set_source(beside);
    }
    Ok(memtables)
}

/// The run directory of the store in `dir`, and its lock. Also removes the shared memory of stores that are gone.
fn run_directory(dir: &Path, store_id: u128, options: &Options) -> Result<(RunDir, Box<dyn Send + Sync>)> {
    let (run_dir, held) = RunDir::create(dir, store_id, &options.run_root)?;
    // Before the control page: a process that finds the page must find the bells.
    Bells::open_or_create(&run_dir.bells())?;
    let gone = RunDir::sweep_gone(&options.run_root)?;
    if !gone.is_empty() {
        tracing::info!(name: "shm.gone_stores_removed", ?gone, "removed the shared memory of stores that are gone");
    }
    Ok((run_dir, Box::new(held)))
}

/// Up to which record readers may have seen the log of the previous run.
fn seen_before(control: &Control, known: &wal::Meta) -> Lsn {
    match control.timeline() {
        // The page is new after a restart of the host: what readers saw before is unknown.
        Timeline(0) if !known.clean => Lsn(u64::MAX),
        // The start publishes a timeline that has risen, regardless of what readers have seen.
        shown if shown > Timeline(0) && shown < known.timeline => Lsn::NONE,
        _ => control.applied(),
    }
}

/// Marks the page as recovering, and removes what the previous instance has left; returns the number of the new instance.
fn begin_instance(control: &Control, run_dir: &RunDir, dir: &Path) -> Result<u64> {
    control.set_instance((control.instance() + 1) | 1);
    control.set_server(None);
    run_dir.sweep(None)?;
    spill::sweep(dir)?;
    let instance = run_dir.free_instance(control.instance() + 1)?;
    control.set_instance(instance - 1);
    control.reset();
    Ok(instance)
}

/// Publishes that the log ends at `end`, on `timeline`.
fn show_end(control: &Control, timeline: Timeline, end: DurableMark) {
    // The timeline first: a reader that sees a watermark fall has seen the timeline rise.
    if timeline != control.timeline() {
        control.set_timeline(timeline, end.lsn.next());
    }
    control.set_appended(end.lsn, end.position);
    control.set_applied(end.lsn);
}

/// Publishes that everything up to `end` is durable, and what is known to be committed. What was published as committed
/// since the host was started is not withdrawn.
fn show_durable(control: &Control, end: DurableMark, committed: Lsn) {
    control.set_durable(end.lsn, end.position);
    control.reset_committed(control.committed().min(end.lsn).max(committed));
}

/// Interval between reports of a long recovery.
const REPORT_NS: u64 = 1_000_000_000;

/// Logs at intervals how far recovery is; `reported` is when it last did.
fn report(frame: &wal::Frame<'_>, now: u64, control: &Control, reported: &mut u64) {
    control.beat(now);
    if now.saturating_sub(*reported) > REPORT_NS {
        *reported = now;
        tracing::info!(
            name: "wal.recovering", records = frame.header.first_lsn.0 - 1, log_bytes = frame.header.position.0,
            "recovering the log"
        );
    }
}

/// The flusher for recovery and the store that serves; it skips the numbers of files in the directory.
fn flusher(parts: flush::Parts) -> Result<Flusher> {
    let mut flusher = Flusher::new(parts);
    flusher.skip_known_ids()?;
    Ok(flusher)
}

/// The frames after a checkpoint, for consensus.
struct Replicated {
    frames: Frames,
    changes: BTreeMap<u64, Change>,
}

/// Most bytes of log before the checkpoint that a start reads for hosts that lag behind, and that a host keeps while the
/// progress of the others is unknown.
pub(super) const KEPT_MAX: u64 = 1 << 30;

impl Replicated {
    /// The frames in the last `keep` bytes before the checkpoint `from`, as far as they are still there.
    fn before(disk: &dyn Disk, dir: &Path, known: &wal::Meta, from: wal::Chain, keep: u64) -> Result<Replicated> {
        let passed = if keep == 0 { Vec::new() } else { wal::passed(disk, &dir.join(wal::DIR), known, from)? };
        let reaches = |h: &wal::Header| h.position.0 / known.segment_size * known.segment_size + known.segment_size + keep;
        let kept = passed.iter().filter(|h| reaches(h) > from.position.0 && h.kind() != FrameType::Pad);
        let mut kept = kept.peekable();
        let begin = match kept.peek() {
            None => from,
            // The first frame of all has no predecessor.
            Some(first) if first.index.0 == 1 => wal::Chain { term: tapestore::lsn::Term(0), ..first.place() },
            // The term of the preceding frame is unknown: the frames that can be sent to others begin after this one.
            Some(_) => kept.next().map_or(from, |h| wal::Chain {
                index: FrameIndex(h.index.0 + 1),
                lsn: Lsn(h.first_lsn.0 + h.records()),
                ..h.place()
            }),
        };
        let mut frames = Frames::new(&begin);
        kept.for_each(|h| frames.push(h));
        Ok(Replicated { frames, changes: BTreeMap::new() })
    }

    fn visit(&mut self, frame: &wal::Frame<'_>) -> Result<()> {
        if frame.header.kind() == FrameType::Pad {
            return Ok(());
        }
        self.frames.push(&frame.header);
        if let Body::Membership(words) = &frame.body {
            let change = Change::parse(words).map_err(|bad| {
                let reason = format!("frame {}: {}: {} where {} is due", frame.header.index, bad.what, bad.found, bad.expected);
                Error::invalid("membership frame", reason)
            })?;
            self.changes.insert(frame.header.index.0, change);
        }
        Ok(())
    }
}

/// Opens the term of a host that is alone, at once: no other host could.
fn open_term(
    state: &mut StoreState,
    syncer: &mut wal::Syncer,
    node: &mut Node,
    clock: &dyn tapestore::time::Clock,
) -> Result<()> {
    node.campaign()?;
    while let Some(work) = node.work() {
        state.writer.ready()?;
        let (appended, change) = match work {
            Work::Open { term } => (state.open_term(super::state::term_of(term)?, clock.wall())?, None),
            Work::Change { change, .. } => (state.change_members(&change, clock.wall())?, Some(change)),
        };
        let (header, end) = (appended.header, appended.end);
        if let Some(segment) = appended.opened {
            syncer.opened(segment);
        }
        node.written(&header, change)?;
        syncer.sync(end)?;
        node.persisted(end.index.0)?;
    }
    Ok(())
}

/// The state before the first frame of the log, with new files of symbols and kinds in shared memory.
fn empty(
    memtables: MemTables,
    (run_dir, instance): (&RunDir, u64),
    manifest: &manifest::State,
    known_committed: u64,
    options: &Options,
) -> Result<Rebuilt> {
    let symbols = SymbolsWriter::create(&run_dir.symbols(instance), options.instruments_max)?;
    let kinds = KindsWriter::create(&run_dir.kinds(instance))?;
    Rebuilt::new(memtables, symbols, kinds, manifest, known_committed)
}

/// Opens the store, creating it if there is none, and rebuilds its state from the checkpoint and the log after it.
/// Afterwards everything rebuilt is durable, and a host that is alone has begun a new term.
///
/// # Errors
/// [`Error::Backup`] if it is a backup; [`Error::Locked`] if another process has it; as [`Manifest::open`] and
/// [`wal::open`].
pub fn recover(options: Options, world: &World) -> Result<Recovered> {
    let options = Options { store: absolute(&options.store)?, run_root: absolute(&options.run_root)?, ..options };
    let (disk, dir) = (&world.disk, &options.store.clone());
    let written = clock::last_written(disk.as_ref(), dir)?;
    disk.create_dir(dir)?;
    backup::refuse(disk.as_ref(), dir)?;
    let lock = disk.lock(&dir.join(tapestore::disk::LOCK))?.ok_or_else(|| Error::Locked { path: dir.clone() })?;
    let (known, manifest) = open_files(disk, dir, &options, world)?;
    let store_id = known.store_id;
    let boot_check = boot_check::begin(disk.as_ref(), dir, &known, options.cluster.is_lossy(), world.boot)?;
    let (run_dir, held) = run_directory(dir, store_id, &options)?;
    let control = control_page(&run_dir, store_id)?;
    let seen = seen_before(&control, &known);
    // Unknown from a page that is new.
    let shown = (control.timeline() > Timeline(0)).then(|| control.appended_position());
    let instance = begin_instance(&control, &run_dir, dir)?;
    let options = options.check()?;
    let maker = maker(&run_dir, instance, store_id, &options);
    let from = manifest.state().checkpoint;
    remove_unfinished(disk.as_ref(), dir)?;
    let memtables = memtables(&maker, &control, from.lsn, manifest.state().seq, &options)?;
    let alone = boot_check.file.meta().is_alone();
    let known_committed = if alone { u64::MAX } else { boot_check.file.meta().commit };
    let mut rebuilt = empty(memtables, (&run_dir, instance), manifest.state(), known_committed, &options)?;
    let keep = if alone { 0 } else { options.cluster.retain_bytes.min(KEPT_MAX) };
    let mut replicated = Replicated::before(disk.as_ref(), dir, &known, from, keep)?;
    let parts = flush::Parts {
        disk: disk.clone(),
        dir: dir.clone(),
        store_id,
        segment_size: known.segment_size,
        manifest,
        run_dir: run_dir.clone(),
        instance,
        control: control.clone(),
    };
    let mut flusher = flusher(parts)?;
    let mut reported = world.clock.monotonic();
    let log = wal::open(disk.clone(), dir, from, keep, seen, |frame| {
        report(frame, world.clock.monotonic(), &control, &mut reported);
        replicated.visit(frame)?;
        rebuilt.visit(frame, &mut flusher, world.clock.as_ref())
    })?;
    flusher.sweep()?;
    let Log { mut writer, mut syncer, meta, truncated, was_clean } = log;
    let end = writer.end();
    let raft_meta = boot_check.recovered(disk.as_ref(), dir, options.cluster.is_lossy(), end.position, shown)?;
    clock::check_start(world.clock.as_ref(), writer.chain().ingest_ts, written, &control);
    show_end(&control, meta.meta().timeline, end);
    writer.ready()?;
    let (mut state, sealed) = rebuilt.into_state(writer, control.clone());
    let Replicated { frames, changes } = replicated;
    let mut node = Node::new(&options.cluster, raft_meta, frames, changes, from.index.0 - 1)?;
    if alone {
        open_term(&mut state, &mut syncer, &mut node, world.clock.as_ref())?;
    }
    show_durable(&control, state.writer.end(), node.frames().lsn(node.committed()));
    let started = Started {
        run_dir: run_dir.path().to_path_buf(),
        instance,
        records: end.lsn.0,
        flushed: flusher.manifest().state().covered().0,
        files: flusher.manifest().state().files.len() as u64,
        log_bytes: end.position.0 - from.position.0.min(end.position.0),
        was_clean,
        truncated: truncated.map(|c| format!("{} at offset {}: {}", c.path.display(), c.offset, c.bad.what)),
        memtable_size: options.memtable_size,
    };
    let lock = Box::new((lock, held));
    Ok(Recovered { options, state, syncer, meta, control, flusher, sealed, node, started, run_dir, maker, lock })
}
