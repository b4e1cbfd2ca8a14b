//! The tests' S3 server as a program, for benchmarks and trying things by hand. Serves from memory until its standard
//! input ends or it is killed.
//!
//! `s3-test-server [--port N] [--bucket NAME]... [--latency-ms N] [--bytes-per-second N] [--ignore-conditional |
//! --racy-conditional]`

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

#[path = "../tests/common/s3/mod.rs"]
mod s3;

use s3::{Link, Mode, S3Server};

struct Options {
    port: u16,
    buckets: Vec<String>,
    link: Link,
    mode: Mode,
}

fn main() -> ExitCode {
    let Some(options) = parse(std::env::args().skip(1)) else {
        eprintln!(
            "usage: s3-test-server [--port N] [--bucket NAME]... [--latency-ms N] [--bytes-per-second N] \
             [--ignore-conditional | --racy-conditional]"
        );
        return ExitCode::from(2);
    };
    let server = S3Server::start_behind(options.mode, options.link, options.port);
    for bucket in &options.buckets {
        server.create_bucket(bucket);
    }
    println!("endpoint={}", server.endpoint());
    println!("access_key={} secret_key={} region={}", s3::ACCESS_KEY, s3::SECRET_KEY, s3::REGION);
    let mut ignored = [0; 64];
    while let Ok(1..) = std::io::stdin().read(&mut ignored) {}
    ExitCode::SUCCESS
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options { port: 0, buckets: vec![], link: Link::default(), mode: Mode::Atomic };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--port" => options.port = words.next()?.parse().ok()?,
            "--bucket" => options.buckets.push(words.next()?),
            "--latency-ms" => options.link.latency = Duration::from_millis(words.next()?.parse().ok()?),
            "--bytes-per-second" => options.link.bytes_per_second = Some(words.next()?.parse().ok()?),
            "--ignore-conditional" => options.mode = Mode::IgnoreConditional,
            "--racy-conditional" => options.mode = Mode::RacyConditional,
            _ => return None,
        }
    }
    Some(options)
}
