//! Owns: writing metrics of one name each, in a collector of the metrics library.
//!
//! What must hold: a name is written once, with its help, and then all values that it has. A counter's name gets `_total`, a time's
//! `_seconds`, a size's `_bytes`, as Prometheus' conventions want.

use std::fmt::Result;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;
use tapestore::shm::histogram::{self, Distribution};

/// Writes metrics.
pub(super) struct Words<'e>(pub(super) DescriptorEncoder<'e>);

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Numbers without a unit.
    Count,
    /// Bytes.
    Bytes,
    /// Nanoseconds, which are written as seconds.
    Time,
}

impl Of {
    fn unit(self) -> Option<&'static Unit> {
        match self {
            Of::Count => None,
            Of::Bytes => Some(&Unit::Bytes),
            Of::Time => Some(&Unit::Seconds),
        }
    }
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, f64>> = None;

impl Words<'_> {
    /// A number that rises.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> Result {
        self.0.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter(&value, NO_EXEMPLAR)
    }

    /// Bytes that rise.
    pub(super) fn bytes_counter(&mut self, name: &str, help: &str, bytes: u64) -> Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Counter)?;
        metric.encode_counter(&bytes, NO_EXEMPLAR)
    }

    /// A time that rises, of `ns` nanoseconds.
    pub(super) fn time_counter(&mut self, name: &str, help: &str, ns: u64) -> Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        metric.encode_counter(&seconds(ns), NO_EXEMPLAR)
    }

    /// Values that rise, each with a value of `label`.
    pub(super) fn counters(
        &mut self,
        of: Of,
        (name, help): (&str, &str),
        label: &str,
        values: impl IntoIterator<Item = (String, u64)>,
    ) -> Result {
        let mut metric = self.0.encode_descriptor(name, help, of.unit(), MetricType::Counter)?;
        each(&mut metric, label, values, |metric, value| match of {
            Of::Time => metric.encode_counter(&seconds(value), NO_EXEMPLAR),
            Of::Count | Of::Bytes => metric.encode_counter(&value, NO_EXEMPLAR),
        })
    }

    /// A number.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// Bytes.
    pub(super) fn bytes(&mut self, name: &str, help: &str, bytes: u64) -> Result {
        self.0.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?.encode_gauge(&bytes)
    }

    /// A time of `ns` nanoseconds.
    pub(super) fn time(&mut self, name: &str, help: &str, ns: u64) -> Result {
        self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&seconds(ns))
    }

    /// Values, each with a value of `label`.
    pub(super) fn gauges(
        &mut self,
        of: Of,
        (name, help): (&str, &str),
        label: &str,
        values: impl IntoIterator<Item = (String, u64)>,
    ) -> Result {
        let mut metric = self.0.encode_descriptor(name, help, of.unit(), MetricType::Gauge)?;
        each(&mut metric, label, values, |metric, value| match of {
            Of::Time => metric.encode_gauge(&seconds(value)),
            Of::Count | Of::Bytes => metric.encode_gauge(&value),
        })
    }

    /// One of some: 1 for each value of `label` that holds, 0 for the others.
    pub(super) fn one_of<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, bool)>,
    ) -> Result {
        self.gauges(Of::Count, (name, help), label, values.into_iter().map(|(value, holds)| (value.to_owned(), u64::from(holds))))
    }

    /// What the program is.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    /// A histogram: of seconds, or of counts in their `unit`.
    pub(super) fn histogram(&mut self, name: &str, help: &str, unit: Option<&Unit>, values: &Distribution) -> Result {
        let is_time = values.of.unit() == histogram::Unit::Time;
        let scale = |value: u64| if is_time { seconds(value) } else { value as f64 };
        let bounds = values.of.bounds().iter().map(|bound| scale(*bound)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(values.counts).collect();
        let unit = if is_time { Some(&Unit::Seconds) } else { unit };
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(scale(values.sum), values.count(), &buckets, None)
    }
}

fn each(
    metric: &mut MetricEncoder<'_>,
    label: &str,
    values: impl IntoIterator<Item = (String, u64)>,
    write: impl Fn(&mut MetricEncoder<'_>, u64) -> Result,
) -> Result {
    values.into_iter().try_for_each(|(of, value)| write(&mut metric.encode_family(&[(label, of.as_str())])?, value))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
