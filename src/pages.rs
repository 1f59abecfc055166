//! Owns: unreadable pages of mapped files. A page becomes unreadable when it was evicted and its disk fails, or when its
//! file is truncated. A thread that touches it then gets SIGBUS. [`guard`] installs a handler that replaces the page by
//! zeros and marks its mapping; readers of the mapping check the mark after each use ([`Guarded::is_damaged`]).
//!
//! What must hold: the handler does only what a signal handler may (atomics and system calls, no lock, no allocation); a
//! mapping is marked before its zeros are visible; a fault at any other address goes to the previous handler. A mapping is
//! registered for as long as it is mapped, whether or not the process has installed the handler.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use crate::error::{Error, Result};

/// Most guarded mappings of a process: more than the system's default limit (65,530).
const SLOTS: usize = 1 << 16;

/// A registered mapping. `start` is 0 while the slot is free.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    is_writable: AtomicBool,
    /// Pages that were replaced by zeros.
    damaged: AtomicU32,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), is_writable: AtomicBool::new(false), damaged: AtomicU32::new(0) }
}; SLOTS];
/// Slots that have ever been used; the handler searches no others.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Slots that were used and are free. The handler does not touch this.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// Whether the handler is installed.
static IS_GUARDED: AtomicBool = AtomicBool::new(false);
/// Replaced pages of all mappings since the process began.
static DAMAGED: AtomicU64 = AtomicU64::new(0);
/// Bytes of a page.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// The previous handler, never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

/// Whether a thread is in [`watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    No,
    Yes,
    Faulted,
}

thread_local! {
    // Const-initialised and without a destructor, so a signal handler may read it.
    static CALL: Cell<Call> = const { Cell::new(Call::No) };
}

/// Installs the SIGBUS handler: a bad page of a store's file or of its shared memory is then an error of the call that
/// reads it. The processes of tapestore call this when they start; a program that links the library has to call it itself.
/// SIGBUS at any other address goes to the previous handler.
///
/// # Errors
/// [`Error::Io`] if the system refuses the handler.
pub fn guard() -> Result<()> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if IS_GUARDED.load(Ordering::Relaxed) {
        return Ok(());
    }
    PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
    let failed = || Error::io("guard the pages of", std::path::Path::new("this process"), std::io::Error::last_os_error());
    // The previous handler is stored first: the new one may run as soon as it is installed.
    let previous = Box::leak(Box::new(empty()));
    // SAFETY: only reads the current handler; the pointer is to a structure of the right type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous) } != 0 {
        return Err(failed());
    }
    // SYNC: pairs with the load in `pass_on`.
    PREVIOUS.store(previous, Ordering::Release);
    let mut action = empty();
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO requires and does only what a signal handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(failed());
    }
    // A lone bit that only enables checks of the marks: relaxed.
    IS_GUARDED.store(true, Ordering::Relaxed);
    Ok(())
}

fn empty() -> libc::sigaction {
    // SAFETY: a plain structure of integers and an optional function: all zeros is a valid value.
    unsafe { std::mem::zeroed() }
}

/// Whether this process has installed the handler.
#[inline]
pub fn is_guarded() -> bool {
    IS_GUARDED.load(Ordering::Relaxed)
}

/// Number of pages replaced since the process began: while it is unchanged, no mapping has become damaged.
#[inline]
pub fn damaged() -> u64 {
    DAMAGED.load(Ordering::Relaxed)
}

/// The registration of one mapping; drop it before the mapping.
#[derive(Debug)]
pub struct Guarded {
    /// `None`: the table is full, and a bad page of this mapping raises SIGBUS.
    slot: Option<(usize, &'static Slot)>,
}

impl Guarded {
    /// Registers the mapping of `len` bytes at `start`.
    pub fn new(start: *const u8, len: usize, is_writable: bool) -> Guarded {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.pop().unwrap_or_else(|| USED.load(Ordering::Relaxed));
        let Some(slot) = TABLE.get(index) else {
            tracing::warn!(
                name: "disk.mapping_not_guarded", limit = SLOTS,
                "too many mappings: a bad page of this one raises SIGBUS"
            );
            return Guarded { slot: None };
        };
        slot.damaged.store(0, Ordering::Relaxed);
        slot.is_writable.store(is_writable, Ordering::Relaxed);
        // SYNC: pairs with the load of `end` in `find`: a reader of this end also sees that the earlier mapping is gone.
        slot.end.store(start.addr() + len, Ordering::Release);
        // SYNC: pairs with the first load of `start` in `find`.
        slot.start.store(start.addr(), Ordering::Release);
        // SYNC: pairs with the load in `find`.
        USED.fetch_max(index + 1, Ordering::Release);
        Guarded { slot: Some((index, slot)) }
    }

    /// Whether a page of the mapping was replaced by zeros, so earlier reads of it may be wrong. Call after the reads to be
    /// verified.
    #[inline]
    pub fn is_damaged(&self) -> bool {
        let Some((_, slot)) = self.slot else { return false };
        // SYNC: orders the reads of the mapping before the load of the mark. Pairs with the mark's store in `mend`, which
        // comes before the zeros become visible.
        fence(Ordering::Acquire);
        slot.damaged.load(Ordering::Relaxed) != 0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let Some((index, slot)) = self.slot else { return };
        slot.start.store(0, Ordering::Relaxed);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(index);
    }
}

/// Runs `call`, which touches mappings of another library. `true`: it touched an unreadable page, which was replaced by
/// zeros private to this process, so its result must be discarded. Without [`guard`] the touch raises SIGBUS.
#[inline]
pub fn watch<T>(call: impl FnOnce() -> T) -> (T, bool) {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            CALL.set(Call::No);
        }
    }
    CALL.set(Call::Yes);
    let inside = Inside;
    let value = call();
    let has_faulted = CALL.get() == Call::Faulted;
    drop(inside);
    (value, has_faulted)
}

/// The registered mapping that holds `address`.
fn find(address: usize) -> Option<&'static Slot> {
    // SYNC: pairs with the store in `Guarded::new`.
    let used = USED.load(Ordering::Acquire);
    TABLE.iter().take(used).find(|slot| {
        // SYNC: pairs with the stores in `Guarded::new`. A slot reused for another mapping meanwhile has another start by
        // then, and a thread that touches a mapping keeps it registered.
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        start != 0 && (start..end).contains(&address) && slot.start.load(Ordering::Relaxed) == start
    })
}

/// Maps a page of zeros at `address`. `false`: it is not registered and not touched in [`watch`], or the system has no page.
fn mend(address: usize) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let is_writable = match find(address) {
        Some(slot) => {
            // SYNC: pairs with the fence in `is_damaged`: the mark is set before the zeros are visible.
            slot.damaged.fetch_add(1, Ordering::SeqCst);
            slot.is_writable.load(Ordering::Relaxed)
        }
        None if CALL.get() != Call::No => {
            CALL.set(Call::Faulted);
            true
        }
        None => return false,
    };
    DAMAGED.fetch_add(1, Ordering::SeqCst);
    let protection = if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    let at = std::ptr::with_exposed_provenance_mut::<c_void>(address & !(page - 1));
    // SAFETY: the page lies in a mapping that this thread is touching, so it stays mapped; the replaced page is unreadable.
    // The direct system call leaves `errno` unchanged.
    unsafe { rustix::mm::mmap_anonymous(at, page, protection, MapFlags::PRIVATE | MapFlags::FIXED) }.is_ok()
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes a valid structure to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    if code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR {
        // SAFETY: the system passes a valid structure to a handler with SA_SIGINFO.
        let info = unsafe { &*info };
        // SAFETY: with these codes the structure holds an address.
        let address = unsafe { info.si_addr() };
        if mend(address.addr()) {
            return;
        }
    }
    pass_on(signal, code, info, context);
}

/// Passes the signal to the previous handler.
fn pass_on(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SYNC: pairs with the store in `guard`.
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: never freed, and never written after its store.
    let previous = unsafe { previous.as_ref() };
    let handler = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        let is_sent = code <= 0;
        if handler == libc::SIG_IGN && is_sent {
            return;
        }
        let action = empty();
        // SAFETY: all zeros is the default action.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        // A fault repeats on return; a signal that was sent has to be sent again.
        if is_sent {
            let own = std::process::id().cast_signed();
            // SAFETY: sends a signal to this process only.
            unsafe { libc::kill(own, signal) };
        }
        return;
    }
    if previous.is_some_and(|p| p.sa_flags & libc::SA_SIGINFO != 0) {
        type Full = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: installed with SA_SIGINFO, so it is such a function.
        let full = unsafe { std::mem::transmute::<usize, Full>(handler) };
        full(signal, info, context);
    } else {
        // SAFETY: installed without SA_SIGINFO, so it is such a function.
        let plain = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
        plain(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// A mapping of a file that is truncated afterwards.
    fn truncated(len: usize) -> (memmap2::Mmap, Guarded) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        let map = map(&file);
        let guarded = Guarded::new(map.as_ptr(), map.len(), false);
        file.set_len(0).unwrap();
        (map, guarded)
    }

    fn map(file: &File) -> memmap2::Mmap {
        // SAFETY: this test checks what happens when the rule that mapped files do not change is broken.
        unsafe { memmap2::Mmap::map(file) }.unwrap()
    }

    fn read(map: &memmap2::Mmap, at: usize) -> u8 {
        // SAFETY: inside the mapping.
        let at = unsafe { map.as_ptr().add(at) };
        // SAFETY: inside the mapping; an unreadable page is replaced.
        unsafe { at.read_volatile() }
    }

    #[test]
    fn a_lost_page_marks_its_own_mapping_alone_and_raises_no_signal() {
        guard().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 16).unwrap();
        let sound = map(&file);
        let its_guard = Guarded::new(sound.as_ptr(), sound.len(), false);
        let (map, guarded) = truncated(1 << 16);
        assert!(!guarded.is_damaged());
        let before = damaged();
        assert_eq!((read(&map, 5000), read(&sound, 5000)), (0, 0));
        assert!(guarded.is_damaged() && !its_guard.is_damaged() && damaged() > before);
        // A reused slot has no mark.
        drop((guarded, map));
        let again = Guarded::new(sound.as_ptr(), sound.len(), false);
        assert!(!again.is_damaged());
    }

    #[test]
    fn threads_that_touch_a_bad_page_together_all_see_the_mark() {
        guard().unwrap();
        for _ in 0..200 {
            let (map, guarded) = truncated(4096);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        assert_eq!(read(&map, 8), 0);
                        assert!(guarded.is_damaged());
                    });
                }
            });
        }
    }

    #[test]
    fn watch_reports_a_fault_in_another_librarys_mapping() {
        guard().unwrap();
        let (map, guarded) = truncated(1 << 14);
        drop(guarded);
        assert_eq!(watch(|| read(&map, 100)), (0, true));
        assert_eq!(watch(|| read(&map, 100)), (0, false), "the page of zeros stays");
        assert_eq!(watch(|| 7), (7, false));
    }
}
