//! Owns: what the process says of itself: metrics for Prometheus, `/healthz` and `/readyz`.
//!
//! What must hold: every metric is in `docs/metrics.md`; a test holds both against each other.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use tape_services::metrics::Source;

use crate::engine::{Engine, Settings};
use crate::statistics::{Statistics, write};

/// What a process serves of an engine.
pub struct Served(pub Arc<Engine>);

impl Source for Served {
    fn metrics(&self) -> Box<dyn Collector> {
        let engine = &self.0;
        let (memory, spilled) = engine.used();
        Box::new(Metrics {
            statistics: engine.statistics().clone(),
            plans: engine.plans().len() as u64,
            memory,
            spilled,
            is_served: engine.is_served(),
        })
    }

    /// It has no state: while it answers, it works.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// It is ready while it can read the store.
    fn readiness(&self) -> Result<(), String> {
        self.0.moment(&Settings::default()).map(drop).map_err(|error| error.to_string())
    }
}

#[derive(Debug)]
struct Metrics {
    statistics: Statistics,
    plans: u64,
    memory: u64,
    spilled: u64,
    is_served: bool,
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let to = &mut encoder;
        let build = [("version", env!("CARGO_PKG_VERSION")), ("process", "query")];
        write(to, ("build", "The program."), None, &Info::new(build))?;
        self.statistics.encode(to)?;
        write(to, ("query_kept_plans", "Plans that are kept for the next time."), None, &ConstGauge::new(self.plans))?;
        let memory = ConstGauge::new(self.memory);
        write(to, ("query_memory", "Memory of the operators of statements."), Some(&Unit::Bytes), &memory)?;
        let spilled = ConstGauge::new(self.spilled);
        write(to, ("query_spilled", "Data of statements on the disk."), Some(&Unit::Bytes), &spilled)?;
        let is_served = ConstGauge::new(u64::from(self.is_served));
        write(to, ("query_store_served", "1 while a storage process serves the store."), None, &is_served)
    }
}
