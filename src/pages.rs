//! Owns: pages of mapped files that cannot be read. A page that was readable can stop being so: it is evicted and its
//! disk fails, or its file is cut short. Whoever touches it then gets SIGBUS. [`guard`] puts a page of zeros in its place
//! and marks its mapping, and who reads the mapping looks at the mark after each use ([`Guarded::is_damaged`]).
//!
//! What must hold: the handler does only what a signal handler may (atomics and system calls, no lock, no allocation); a
//! mapping is marked before its zeros can be seen; a fault at any other address goes to the handler that was there before.
//! A mapping is registered for as long as it is mapped, whether the process has asked for the handler or not.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use crate::error::{Error, Result};

/// Mappings of a process that are guarded: more than a process may have by default (65,530).
const SLOTS: usize = 1 << 16;

/// A registered mapping. `start` is 0 while nothing is registered here.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    is_writable: AtomicBool,
    /// Pages of zeros in it.
    damaged: AtomicU32,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), is_writable: AtomicBool::new(false), damaged: AtomicU32::new(0) }
}; SLOTS];
/// Slots that have ever been used: the handler looks at no others.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Slots that were used and are free. The handler does not look here.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// Whether the handler is there.
static IS_GUARDED: AtomicBool = AtomicBool::new(false);
/// Pages of zeros of all mappings since the process began.
static DAMAGED: AtomicU64 = AtomicU64::new(0);
/// Bytes of a page.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// The handler that was there before, never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

/// Whether a thread is in [`watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    No,
    Yes,
    Faulted,
}

thread_local! {
    // Without a destructor and made by the compiler: a signal handler may read it.
    static CALL: Cell<Call> = const { Cell::new(Call::No) };
}

/// Survives pages that cannot be read: from now on a bad page of a store's file, and of its shared memory, is an error of
/// the call that reads it, and no SIGBUS. The processes of tapestore ask for it when they start; a program that links the
/// library does so by this one call. SIGBUS at any other address goes to the handler that was there before.
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
    // The one before first: the handler may be called as soon as it is there.
    let previous = Box::leak(Box::new(empty()));
    // SAFETY: asks for the handler alone; the pointer is to a structure of the right type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous) } != 0 {
        return Err(failed());
    }
    // SYNC: pairs with the load in `pass_on`.
    PREVIOUS.store(previous, Ordering::Release);
    let mut action = empty();
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a signal handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(failed());
    }
    // A lone bit; what it allows is to look at marks: relaxed.
    IS_GUARDED.store(true, Ordering::Relaxed);
    Ok(())
}

fn empty() -> libc::sigaction {
    // SAFETY: a plain structure of integers and an optional function: all zeros is a value of it.
    unsafe { std::mem::zeroed() }
}

/// Whether this process survives bad pages.
#[inline]
pub fn is_guarded() -> bool {
    IS_GUARDED.load(Ordering::Relaxed)
}

/// Pages that had to be replaced since the process began: while it stays the same, no mapping has become damaged.
#[inline]
pub fn damaged() -> u64 {
    DAMAGED.load(Ordering::Relaxed)
}

/// The guard of one mapping, to be dropped before it is unmapped.
#[derive(Debug)]
pub struct Guarded {
    /// `None`: the table is full, and a bad page of this mapping is a signal as ever.
    slot: Option<(usize, &'static Slot)>,
}

impl Guarded {
    /// Registers the mapping of `len` bytes at `start`.
    pub fn new(start: *const u8, len: usize, is_writable: bool) -> Guarded {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.pop().unwrap_or_else(|| USED.load(Ordering::Relaxed));
        let Some(slot) = TABLE.get(index) else {
            tracing::warn!(limit = SLOTS, "too many mappings: a bad page of this one is a signal");
            return Guarded { slot: None };
        };
        slot.damaged.store(0, Ordering::Relaxed);
        slot.is_writable.store(is_writable, Ordering::Relaxed);
        // SYNC: pairs with the load of `end` in `find`: who sees this end sees that the earlier mapping is gone.
        slot.end.store(start.addr() + len, Ordering::Release);
        // SYNC: pairs with the first load of `start` in `find`.
        slot.start.store(start.addr(), Ordering::Release);
        // SYNC: pairs with the load in `find`.
        USED.fetch_max(index + 1, Ordering::Release);
        Guarded { slot: Some((index, slot)) }
    }

    /// Whether a page of the mapping had to be replaced by zeros: what has been read of it so far may be wrong. To be asked
    /// after the reads that it is to vouch for.
    #[inline]
    pub fn is_damaged(&self) -> bool {
        let Some((_, slot)) = self.slot else { return false };
        // SYNC: the reads of the mapping come before the mark is looked at. Pairs with the mark's store in `mend`, which
        // comes before the zeros are there to be read.
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

/// Carries out `call`, which touches mappings of another library. `true`: it touched a page that is not to be had, which
/// then was a page of zeros of this process alone: what it has made is to be given up. Without [`guard`] that is a signal.
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
        // SYNC: pairs with the stores in `Guarded::new`. A slot that is given to another mapping meanwhile has another
        // start by then, and who touches a mapping keeps it registered.
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        start != 0 && (start..end).contains(&address) && slot.start.load(Ordering::Relaxed) == start
    })
}

/// Puts a page of zeros at `address`, if it is ours. `false`: it is not, or the system has no page.
fn mend(address: usize) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let is_writable = match find(address) {
        Some(slot) => {
            // SYNC: pairs with the fence in `is_damaged`: the mark is there before the zeros are.
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
    // SAFETY: the page lies in a mapping that this thread is touching, so it stays mapped; nobody can read what is replaced.
    // The system call is made directly and leaves `errno` as it is.
    unsafe { rustix::mm::mmap_anonymous(at, page, protection, MapFlags::PRIVATE | MapFlags::FIXED) }.is_ok()
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system gives a valid structure to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    if code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR {
        // SAFETY: the system gives a valid structure to a handler with SA_SIGINFO.
        let info = unsafe { &*info };
        // SAFETY: of these codes the structure holds an address.
        let address = unsafe { info.si_addr() };
        if mend(address.addr()) {
            return;
        }
    }
    pass_on(signal, code, info, context);
}

/// What would have happened without us.
fn pass_on(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SYNC: pairs with the store in `guard`.
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: never freed, and never written after it was stored.
    let previous = unsafe { previous.as_ref() };
    let handler = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        let is_sent = code <= 0;
        if handler == libc::SIG_IGN && is_sent {
            return;
        }
        let action = empty();
        // SAFETY: the default action, which all zeros is.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        // What faulted does so again on return; what was sent has to be sent again.
        if is_sent {
            let own = std::process::id().cast_signed();
            // SAFETY: a signal to this process.
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

    /// A mapping of a file that is cut short afterwards.
    fn cut_short(len: usize) -> (memmap2::Mmap, Guarded) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        let map = map(&file);
        let guarded = Guarded::new(map.as_ptr(), map.len(), false);
        file.set_len(0).unwrap();
        (map, guarded)
    }

    fn map(file: &File) -> memmap2::Mmap {
        // SAFETY: a test that looks at what happens when the rule is broken that files stay as they are.
        unsafe { memmap2::Mmap::map(file) }.unwrap()
    }

    fn read(map: &memmap2::Mmap, at: usize) -> u8 {
        // SAFETY: inside the mapping.
        let at = unsafe { map.as_ptr().add(at) };
        // SAFETY: inside the mapping; a page that is not there is mended.
        unsafe { at.read_volatile() }
    }

    #[test]
    fn a_page_that_is_gone_is_a_mark_and_no_signal_and_only_on_its_own_mapping() {
        guard().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 16).unwrap();
        let sound = map(&file);
        let its = Guarded::new(sound.as_ptr(), sound.len(), false);
        let (map, guarded) = cut_short(1 << 16);
        assert!(!guarded.is_damaged());
        let before = damaged();
        assert_eq!((read(&map, 5000), read(&sound, 5000)), (0, 0));
        assert!(guarded.is_damaged() && !its.is_damaged() && damaged() > before);
        // A slot is used again, without its mark.
        drop((guarded, map));
        let again = Guarded::new(sound.as_ptr(), sound.len(), false);
        assert!(!again.is_damaged());
    }

    #[test]
    fn threads_that_touch_one_bad_page_at_once_all_see_the_mark() {
        guard().unwrap();
        for _ in 0..200 {
            let (map, guarded) = cut_short(4096);
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
    fn a_fault_of_another_library_in_a_watched_call_is_said_to_who_watches() {
        guard().unwrap();
        let (map, guarded) = cut_short(1 << 14);
        drop(guarded);
        assert_eq!(watch(|| read(&map, 100)), (0, true));
        assert_eq!(watch(|| read(&map, 100)), (0, false), "the page of zeros stays");
        assert_eq!(watch(|| 7), (7, false));
    }
}
