//! Owns: the host's limits: cache line transfer, memory bandwidth, iceoryx2 alone, the disk alone.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use iceoryx2::prelude::*;

use crate::{at_rate, histogram};

/// Round trips of one cache line between two pinned threads.
pub fn line_round_trip() -> Histogram<u64> {
    #[repr(align(128))]
    struct Line(AtomicU64);
    let (there, back) = (Arc::new(Line(AtomicU64::new(0))), Arc::new(Line(AtomicU64::new(0))));
    let (t, b) = (there.clone(), back.clone());
    let count = 200_000;
    let echo = std::thread::spawn(move || {
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
        for i in 1..=count {
            while t.0.load(Ordering::Acquire) < i {
                std::hint::spin_loop();
            }
            b.0.store(i, Ordering::Release);
        }
    });
    let mut h = histogram();
    let pinned = std::thread::spawn(move || {
        core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
        for i in 1..=count {
            let began = Instant::now();
            there.0.store(i, Ordering::Release);
            while back.0.load(Ordering::Acquire) < i {
                std::hint::spin_loop();
            }
            h.record(began.elapsed().as_nanos() as u64).unwrap();
        }
        h
    });
    let h = pinned.join().unwrap();
    echo.join().unwrap();
    h
}

/// Bytes a second that one thread reads from uncached memory.
pub fn memory_read() -> f64 {
    let words = vec![1u64; (512 << 20) / 8];
    let mut best = 0f64;
    for _ in 0..3 {
        let began = Instant::now();
        let sum: u64 = std::hint::black_box(&words).iter().copied().fold(0, u64::wrapping_add);
        std::hint::black_box(sum);
        best = best.max((512u64 << 20) as f64 / began.elapsed().as_secs_f64());
    }
    best
}

/// One-way latency of iceoryx2 alone: 64 bytes, busy polling, `per_second` samples by schedule.
pub fn bus_one_way(per_second: u64, count: u64) -> Histogram<u64> {
    let name = format!("bench{}", std::process::id());
    let mut config = Config::default();
    config.global.prefix = FileName::new(format!("{name}_").as_bytes()).unwrap();
    let node = NodeBuilder::new()
        .config(&config)
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .create::<ipc_threadsafe::Service>()
        .unwrap();
    let service = node
        .service_builder(&name.as_str().try_into().unwrap())
        .publish_subscribe::<[u64; 8]>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(1024)
        .max_publishers(1)
        .max_subscribers(1)
        .create()
        .unwrap();
    let subscriber = service.subscriber_builder().create().unwrap();
    let publisher = service.publisher_builder().backpressure_strategy(BackpressureStrategy::DiscardData).create().unwrap();
    let (origin, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let receiver = std::thread::spawn(move || {
        let mut h = histogram();
        loop {
            match subscriber.receive().unwrap() {
                Some(sample) => h.record((origin.elapsed().as_nanos() as u64).saturating_sub(sample.payload()[0])).unwrap(),
                None if stopped.load(Ordering::Acquire) => return h,
                None => std::hint::spin_loop(),
            }
        }
    });
    at_rate(per_second, count, |_, due| {
        let at = due.duration_since(origin).as_nanos() as u64;
        publisher.loan_uninit().unwrap().write_payload([at; 8]).send().unwrap();
    });
    stop.store(true, Ordering::Release);
    let h = receiver.join().unwrap();
    drop((publisher, service, node));
    // iceoryx2 leaves one small file behind after its nodes are dropped.
    for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{name}_")) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    h
}

/// The disk alone: sequential overwrites of a prepared file.
pub struct BareDisk {
    file: std::fs::File,
    at: u64,
    size: u64,
}

impl BareDisk {
    /// A file of zeros in `dir`, durable.
    pub fn new(dir: &Path) -> BareDisk {
        let size = 64 << 20;
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("bare")).unwrap();
        let zeros = vec![0u8; 64 << 10];
        (0..size >> 16).for_each(|i| file.write_all_at(&zeros, i << 16).unwrap());
        file.sync_all().unwrap();
        BareDisk { file, at: 0, size }
    }

    /// Writes `bytes` once.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.at + bytes.len() as u64 > self.size {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at).unwrap();
        self.at += bytes.len() as u64;
    }

    /// Calls `fdatasync` once.
    pub fn sync(&self) {
        self.file.sync_data().unwrap();
    }
}
