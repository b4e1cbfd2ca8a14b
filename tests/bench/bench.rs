//! Compares GravitonFS with the local filesystem and with a FUSE filesystem that does nothing, interleaved in one run:
//! each workload on each system in turn, several times, medians. `tests/bench/run --help` tells the options.

#![allow(
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "measures the machine and not a simulation; pub marks what its modules offer each other"
)]

mod data;
mod null_fuse;
mod report;
#[path = "../common/s3/mod.rs"]
mod s3;
mod system;
mod usage;
mod workload;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use report::{Report, Sample, Series};
use system::{Local, NullFuse, Ours, System};
use workload::{Payload, Sizes, Workload};

const USAGE: &str = "\
usage: tests/bench/run [options]
  --json              JSON on standard output instead of a Markdown table
  --out FILE          write the JSON to FILE too
  --check             exit 1 if a result is below the floor
  --size quick|full   big file of 256 MiB or 1 GiB [default: full]
  --repeats N         [default: 3]
  --systems LIST      of local, null_fuse, file, s3 [default: all]
  --workloads LIST    of those in the report, with those whose files they need; what is written is checked only when
                      all of them run [default: all]
  --binary FILE       the gravitonfs to measure [default: the release build of this tree]
  --work DIR          where the files go, and the local filesystem to compare with [default: a new one in $TMPDIR]
Exit codes: 0 done, 1 below the floor, 2 could not be measured.";

struct Options {
    json: bool,
    out: Option<PathBuf>,
    check: bool,
    sizes: Sizes,
    systems: Vec<String>,
    workloads: Vec<Workload>,
    binary: PathBuf,
    work: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["--serve-null-fuse", mountpoint] => {
            null_fuse::serve(Path::new(mountpoint)).map(|()| ExitCode::SUCCESS)
        }
        ["--serve-s3", bucket, bytes] => serve_s3(bucket, bytes),
        words => match parse(words) {
            Some(options) => measure_and_report(&options),
            None => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("bench: {error}");
        ExitCode::from(2)
    })
}

fn parse(words: &[&str]) -> Option<Options> {
    let mut options = Options {
        json: false,
        out: None,
        check: false,
        sizes: Sizes { big_bytes: 1 << 30, small_files: 5000, random_reads: 10_000, repeats: 3 },
        systems: ["local", "null_fuse", "file", "s3"].map(str::to_owned).into(),
        workloads: Workload::ALL.into(),
        binary: PathBuf::from(env!("CARGO_BIN_EXE_gravitonfs")),
        work: None,
    };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--json" => options.json = true,
            "--check" => options.check = true,
            "--out" => options.out = Some(words.next()?.into()),
            "--size" => match words.next()? {
                "quick" => options.sizes.big_bytes = 256 << 20,
                "full" => options.sizes.big_bytes = 1 << 30,
                _ => return None,
            },
            "--repeats" => options.sizes.repeats = words.next()?.parse().ok().filter(|count| 0 < *count)?,
            "--systems" => options.systems = words.next()?.split(',').map(str::to_owned).collect(),
            "--workloads" => {
                let names: Vec<_> = words.next()?.split(',').collect();
                options.workloads.retain(|workload| names.contains(&workload.name()));
                (options.workloads.len() == names.len()).then_some(())?;
            }
            "--binary" => options.binary = words.next()?.into(),
            "--work" => options.work = Some(words.next()?.into()),
            // What cargo adds for the harness that this program does without.
            "--bench" => {}
            _ => return None,
        }
    }
    Some(options)
}

fn serve_s3(bucket: &str, bytes: &str) -> io::Result<ExitCode> {
    usage::take_memory(bytes.parse().map_err(io::Error::other)?);
    let server = s3::S3Server::start(s3::Mode::Atomic);
    server.create_bucket(bucket);
    println!("{}", server.endpoint());
    // Ends with the process that holds the other end of the pipe.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(ExitCode::SUCCESS)
}

fn measure_and_report(options: &Options) -> io::Result<ExitCode> {
    let own_work;
    let work = match &options.work {
        Some(work) => work.as_path(),
        None => {
            own_work = tempfile::tempdir()?;
            own_work.path()
        }
    };
    let series = {
        let mut systems = start(options, work)?;
        measure(options, &mut systems)?
    };
    let report = Report::new(&options.sizes, &series);
    print!("{}", if options.json { report.to_json() } else { report.to_text() });
    if let Some(out) = &options.out {
        fs::write(out, report.to_json())?;
    }
    let failures = report.failures();
    if !options.check || failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for failure in failures {
        eprintln!("bench: below the floor: {failure}");
    }
    Ok(ExitCode::FAILURE)
}

fn start(options: &Options, work: &Path) -> io::Result<Vec<Box<dyn System>>> {
    let mut systems: Vec<Box<dyn System>> = vec![];
    for name in &options.systems {
        systems.push(match name.as_str() {
            "local" => Box::new(Local::new(work)?),
            "null_fuse" => Box::new(NullFuse::new(work)?),
            "file" => Box::new(Ours::over_directory(&options.binary, work)?),
            "s3" => Box::new(Ours::over_s3(&options.binary, work, sent_bytes(&options.sizes))?),
            _ => return Err(io::Error::other(format!("no system is called {name}"))),
        });
    }
    Ok(systems)
}

/// About what all repeats send to a store: the big file, the small ones, and what comes with them.
fn sent_bytes(sizes: &Sizes) -> usize {
    sizes.repeats * (sizes.big_bytes + sizes.small_files * (16 << 10)) * 9 / 8
}

fn measure(options: &Options, systems: &mut [Box<dyn System>]) -> io::Result<Vec<Series>> {
    let sizes = &options.sizes;
    let mut series: Vec<Series> =
        systems.iter().map(|system| Series::new(system.name(), &options.workloads)).collect();
    for repeat in 0..sizes.repeats {
        let payload = Payload::new(sizes, repeat as u64);
        let directory = format!("repeat-{repeat}");
        for system in systems.iter() {
            fs::create_dir(system.root().join(&directory))?;
        }
        for &workload in &options.workloads {
            for (at, system) in in_turn(systems, repeat) {
                let sample = measure_one(&payload, workload, &mut **system, &directory, sizes)
                    .map_err(|error| in_context(&**system, workload, &error))?;
                eprintln!(
                    "{repeat}: {} on {}: {:.0} {}, {:.2} CPU s, drained in {:.2} s",
                    workload.name(),
                    system.name(),
                    sample.rate,
                    workload.unit(),
                    sample.cpu_s,
                    sample.drain_s
                );
                series[at].push(workload, sample);
            }
        }
        for system in systems.iter_mut() {
            let root = system.root().join(&directory);
            if system.name() != "null_fuse" && options.workloads == Workload::ALL {
                payload.verify(&root)?;
            }
            fs::remove_dir_all(root)?;
            system.settle()?;
        }
    }
    Ok(series)
}

/// Each repeat begins with another system, so that none always follows the same one.
fn in_turn(
    systems: &mut [Box<dyn System>],
    repeat: usize,
) -> impl Iterator<Item = (usize, &mut Box<dyn System>)> {
    let mut systems: Vec<_> = systems.iter_mut().enumerate().collect();
    let first = repeat % systems.len().max(1);
    systems.rotate_left(first);
    systems.into_iter()
}

fn in_context(system: &dyn System, workload: Workload, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} on {}: {error}", workload.name(), system.name()))
}

fn measure_one(
    payload: &Payload,
    workload: Workload,
    system: &mut dyn System,
    directory: &str,
    sizes: &Sizes,
) -> io::Result<Sample> {
    if workload == Workload::ColdRead {
        system.cool()?;
    }
    let root = system.root().join(directory);
    payload.prepare(workload, &root)?;
    if let Some(pid) = system.daemon() {
        usage::reset_rss_peak(pid);
    }
    let traffic = system.traffic()?;
    let daemon_cpu = |system: &dyn System| system.daemon().map_or(0.0, usage::cpu_seconds);
    let (client_cpu_before, daemon_cpu_before) = (usage::own_cpu_seconds(), daemon_cpu(system));

    let begin = Instant::now();
    let amount = payload.run(workload, &root, sizes)?;
    let seconds = begin.elapsed().as_secs_f64();

    let client_cpu = usage::own_cpu_seconds() - client_cpu_before;
    let drain = Instant::now();
    system.settle()?;
    let drain_s = drain.elapsed().as_secs_f64();
    let daemon_cpu = daemon_cpu(system) - daemon_cpu_before;
    let after = system.traffic()?;
    Ok(Sample {
        rate: amount / seconds,
        cpu_s: client_cpu + daemon_cpu,
        drain_s,
        requests: after.requests - traffic.requests,
        bytes: after.bytes - traffic.bytes,
        rss_peak: system.daemon().map_or(0, usage::rss_peak_bytes),
    })
}
