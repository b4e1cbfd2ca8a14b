//! From samples to rows: medians, the table for people, JSON for programs, and the floor.

use std::fmt::Write as _;

use serde::Serialize;

use super::workload::{Sizes, Workload};

/// Files a second that creating 5,000 small ones must reach.
const SMALL_FILES_FLOOR: f64 = 1500.0;
/// Share of the slower of null FUSE and local disk that big sequential transfers must reach.
const RATIO_FLOOR: f64 = 0.5;
/// Bytes of memory that the daemon must stay below at all times.
const RSS_CEILING: u64 = 512 << 20;

/// One run of one workload on one system.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// In units of the workload.
    pub rate: f64,
    /// Of the client and the daemon, until nothing is left to do.
    pub cpu_s: f64,
    /// From the end of the client's work until everything is in the store.
    pub drain_s: f64,
    pub requests: u64,
    pub bytes: u64,
    /// Of the daemon; 0 without one.
    pub rss_peak: u64,
}

/// All samples of one system, in the order in which the workloads ran.
pub struct Series {
    pub system: &'static str,
    pub samples: Vec<(Workload, Vec<Sample>)>,
}

impl Series {
    pub fn new(system: &'static str, workloads: &[Workload]) -> Self {
        Self { system, samples: workloads.iter().map(|&workload| (workload, vec![])).collect() }
    }

    pub fn push(&mut self, workload: Workload, sample: Sample) {
        let (_, samples) =
            self.samples.iter_mut().find(|(of, _)| *of == workload).expect("those that run are there");
        samples.push(sample);
    }

    fn of(&self, workload: Workload) -> &[Sample] {
        let (_, samples) =
            self.samples.iter().find(|(of, _)| *of == workload).expect("those that run are there");
        samples
    }
}

/// One workload on one backend of ours beside the two yardsticks. Rates are medians, in `unit`; more is better.
#[derive(Serialize, Debug)]
pub struct Row {
    pub workload: &'static str,
    /// `file` or `s3`; `none` in a run without ours.
    pub backend: &'static str,
    pub unit: &'static str,
    pub ours: Option<f64>,
    pub null_fuse: Option<f64>,
    pub local: Option<f64>,
    /// Ours by the slower of the two yardsticks.
    pub ratio: Option<f64>,
    /// Median, of client and daemon together, background work included.
    pub cpu_s: Option<f64>,
    pub null_fuse_cpu_s: Option<f64>,
    pub local_cpu_s: Option<f64>,
    /// Median seconds until everything was in the store, after `ours` was done.
    pub drain_s: Option<f64>,
    /// Medians, of the object store.
    pub requests: Option<u64>,
    pub bytes: Option<u64>,
    /// Highest of all repeats, in bytes.
    pub rss_peak: Option<u64>,
    /// The slowest and the fastest repeat of ours.
    pub ours_range: Option<(f64, f64)>,
}

#[derive(Serialize)]
pub struct Report {
    schema: u32,
    kernel: String,
    cpus: usize,
    big_bytes: usize,
    small_files: usize,
    repeats: usize,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(sizes: &Sizes, series: &[Series]) -> Self {
        let find = |name: &str| series.iter().find(|series| series.system == name);
        let (null_fuse, local) = (find("null_fuse"), find("local"));
        let mut ours: Vec<_> = ["file", "s3"].into_iter().filter_map(|name| find(name).map(Some)).collect();
        if ours.is_empty() {
            ours.push(None);
        }
        let mut rows = vec![];
        for ours in ours {
            let workloads = series.first().map_or(&[][..], |series| &series.samples);
            rows.extend(workloads.iter().map(|&(workload, _)| row(workload, ours, null_fuse, local)));
        }
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            schema: 1,
            kernel: kernel.trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            big_bytes: sizes.big_bytes,
            small_files: sizes.small_files,
            repeats: sizes.repeats,
            rows,
        }
    }

    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and strings serialize");
        text.push('\n');
        text
    }

    /// A Markdown table.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let Self { kernel, cpus, repeats, small_files, .. } = self;
        let big_mebibytes = self.big_bytes >> 20;
        writeln!(
            text,
            "Big file {big_mebibytes} MiB, {small_files} small files, medians of {repeats}; Linux {kernel}, {cpus} CPUs.\n\n\
             | backend | workload | unit | ours | range | null_fuse | local | ratio | cpu_s | null / local cpu_s \
             | drain_s | requests | MB sent and received | rss_peak MB |\n\
             |---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        )
        .expect("a string takes every line");
        for row in &self.rows {
            let rate = |value: Option<f64>| value.map_or("-".to_owned(), format_rate);
            let seconds = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
            let megabytes = |value: Option<u64>| {
                value.map_or("-".to_owned(), |value| format!("{:.1}", value as f64 / 1e6))
            };
            let range = row
                .ours_range
                .map_or("-".to_owned(), |(low, high)| format!("{}-{}", format_rate(low), format_rate(high)));
            writeln!(
                text,
                "| {} | {} | {} | {} | {range} | {} | {} | {} | {} | {} / {} | {} | {} | {} | {} |",
                row.backend,
                row.workload,
                row.unit,
                rate(row.ours),
                rate(row.null_fuse),
                rate(row.local),
                seconds(row.ratio),
                seconds(row.cpu_s),
                seconds(row.null_fuse_cpu_s),
                seconds(row.local_cpu_s),
                seconds(row.drain_s),
                row.requests.map_or("-".to_owned(), |count| count.to_string()),
                megabytes(row.bytes),
                megabytes(row.rss_peak),
            )
            .expect("a string takes every line");
        }
        text.push('\n');
        for workload in Workload::ALL {
            writeln!(text, "- {}: {}", workload.name(), workload.meaning())
                .expect("a string takes every line");
        }
        text
    }

    /// What is below the floor, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = vec![];
        for row in &self.rows {
            let Row { workload, backend, .. } = row;
            let big_transfer = [Workload::SeqWrite.name(), Workload::ColdRead.name()].contains(workload);
            match row.ratio {
                Some(ratio) if big_transfer && ratio < RATIO_FLOOR => failures.push(format!(
                    "{workload} on {backend}: {ratio:.2} of the slower of null FUSE and local, floor {RATIO_FLOOR}"
                )),
                None if big_transfer => {
                    failures.push(format!("{workload} on {backend}: not compared, because a system is missing"));
                }
                _ => {}
            }
            match row.ours {
                Some(rate) if *workload == Workload::SmallFiles.name() && rate < SMALL_FILES_FLOOR => {
                    failures.push(format!(
                        "{workload} on {backend}: {rate:.0} files/s, floor {SMALL_FILES_FLOOR}"
                    ));
                }
                _ => {}
            }
            match row.rss_peak {
                Some(peak) if RSS_CEILING <= peak => failures
                    .push(format!("{workload} on {backend}: {peak} bytes of memory, ceiling {RSS_CEILING}")),
                _ => {}
            }
        }
        failures
    }
}

fn format_rate(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn row(workload: Workload, ours: Option<&Series>, null_fuse: Option<&Series>, local: Option<&Series>) -> Row {
    let median_of = |series: Option<&Series>, value: fn(&Sample) -> f64| {
        series.map(|series| median(series.of(workload).iter().map(value).collect()))
    };
    let rate = |series| median_of(series, |sample| sample.rate);
    let cpu_s = |series| median_of(series, |sample| sample.cpu_s);
    let count = |value: fn(&Sample) -> f64| median_of(ours, value).map(|value| value as u64);
    let (our_rate, null_rate, local_rate) = (rate(ours), rate(null_fuse), rate(local));
    let rates =
        |series: &Series| -> Vec<f64> { series.of(workload).iter().map(|sample| sample.rate).collect() };
    Row {
        workload: workload.name(),
        backend: ours.map_or("none", |series| series.system),
        unit: workload.unit(),
        ours: our_rate,
        null_fuse: null_rate,
        local: local_rate,
        ratio: our_rate.zip(null_rate.zip(local_rate)).map(|(ours, (null, local))| ours / null.min(local)),
        cpu_s: cpu_s(ours),
        null_fuse_cpu_s: cpu_s(null_fuse),
        local_cpu_s: cpu_s(local),
        drain_s: median_of(ours, |sample| sample.drain_s),
        requests: count(|sample| sample.requests as f64),
        bytes: count(|sample| sample.bytes as f64),
        rss_peak: ours.and_then(|series| series.of(workload).iter().map(|sample| sample.rss_peak).max()),
        ours_range: ours.map(|series| {
            let rates = rates(series);
            (rates.iter().copied().fold(f64::INFINITY, f64::min), rates.iter().copied().fold(0.0, f64::max))
        }),
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
