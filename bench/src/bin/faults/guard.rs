//! Owns: limits for damaged inputs: a counting allocator, a watchdog, and a call that catches panics.
//!
//! What must hold: a hanging case ends the program with its name; allocations of a case are counted on all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::scratch::panic_message;

/// Bytes that a case may allocate beyond the size of its input.
pub const MEMORY_MAX: usize = 64 << 20;
/// Time limit of a case.
const HANG: Duration = Duration::from_secs(20);

/// The system's allocator with a count of bytes.
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(by: usize) {
    let now = NOW.fetch_add(by, Ordering::Relaxed).wrapping_add(by);
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is passed on unchanged to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller upholds the contract of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

static CASES: AtomicU64 = AtomicU64::new(0);
static CASE: Mutex<Option<(Instant, String)>> = Mutex::new(None);

fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                if let Some((began, name)) = &*CASE.lock().unwrap()
                    && began.elapsed() > HANG
                {
                    println!("FAILED: {name} hangs for more than {} s", HANG.as_secs());
                    std::process::exit(1);
                }
            }
        });
    });
}

/// Runs `case`, called `name`, with an input of `input` bytes.
///
/// # Errors
/// The case panicked or allocated too much.
pub fn guarded<T>(name: impl FnOnce() -> String, input: usize, case: impl FnOnce() -> T) -> Result<T, String> {
    watch();
    CASES.fetch_add(1, Ordering::Relaxed);
    *CASE.lock().unwrap() = Some((Instant::now(), name()));
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(case));
    let took = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    *CASE.lock().unwrap() = None;
    match outcome {
        Err(_) => Err(panic_message()),
        Ok(_) if took > MEMORY_MAX + input => Err(format!("{took} bytes allocated for an input of {input}")),
        Ok(value) => Ok(value),
    }
}
