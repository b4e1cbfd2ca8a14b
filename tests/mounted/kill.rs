//! The daemon is killed at random moments while several threads work; mounted again, everything that had been acknowledged
//! is there, and nothing that nobody wrote.
//!
//! `GRAVITONFS_KILL_ROUNDS` sets how many kills of each tier and store, `GRAVITONFS_KILL_SEED` the seed of the first.

#[path = "kill/content.rs"]
mod content;
#[path = "kill/oracle.rs"]
mod oracle;
#[path = "kill/promise.rs"]
mod promise;
#[path = "kill/worker.rs"]
mod worker;

use std::fs;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::LIMIT;
use crate::mount::{Backend, Volume, run_test};
use crate::tree::Noise;
use worker::{Trigger, Worker};

const ROUNDS: u64 = 8;

/// What a round may take on a busy machine.
const ROUND_SECONDS: u64 = 30;

/// At most so many operations, of all threads, come before a kill.
const OPERATIONS_MAX: u64 = 400;

const THREADS_MAX: u64 = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Local,
    Remote,
}

/// Named by store and tier for those who look for one of them.
mod what_was_acknowledged_survives_kills {
    use super::{Backend, Tier, run_rounds};

    #[test]
    fn local_on_file() {
        run_rounds(Backend::File, |volume| super::rounds(volume, Tier::Local));
    }

    #[test]
    fn local_on_s3() {
        run_rounds(Backend::S3, |volume| super::rounds(volume, Tier::Local));
    }

    #[test]
    fn remote_on_file() {
        run_rounds(Backend::File, |volume| super::rounds(volume, Tier::Remote));
    }

    #[test]
    fn remote_on_s3() {
        run_rounds(Backend::S3, |volume| super::rounds(volume, Tier::Remote));
    }
}

fn run_rounds(backend: Backend, body: fn(&Volume)) {
    run_test(backend, module_path!(), 120 + ROUND_SECONDS * rounds_asked_for(), body);
}

fn rounds_asked_for() -> u64 {
    number_from("GRAVITONFS_KILL_ROUNDS").unwrap_or(ROUNDS)
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Says how to do it again if the test fails.
struct Seed {
    first: u64,
    round: u64,
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let rounds = self.round - self.first + 1;
            eprintln!("GRAVITONFS_KILL_SEED={} GRAVITONFS_KILL_ROUNDS={rounds}", self.first);
        }
    }
}

fn rounds(volume: &Volume, tier: Tier) {
    let first = number_from("GRAVITONFS_KILL_SEED").unwrap_or(1);
    let mut seed = Seed { first, round: first };
    let options: &[&str] = if tier == Tier::Remote { &["-o", "durability=remote"] } else { &[] };
    expect_what_kills_bring(volume);
    volume.mount_with(options);
    let mut workers = Vec::new();
    for thread in 0..THREADS_MAX {
        let worker = Worker::new(format!("thread-{thread}"), tier == Tier::Remote);
        fs::create_dir(volume.path(worker.name())).expect("mkdir");
        workers.push(worker);
    }
    volume.sync();
    let mut acknowledged = 0;
    for round in first..first + rounds_asked_for() {
        seed.round = round;
        let mut dice = Noise::new(round);
        let loses_machine = tier == Tier::Remote && dice.number().is_multiple_of(2);
        if loses_machine {
            volume.sync();
            workers.iter_mut().for_each(Worker::note_all_stored);
        }
        acknowledged += work_until_killed(volume, &mut workers, &mut dice);
        if loses_machine {
            lose_machine(volume);
            volume.mount_with(&["-o", "durability=remote,takeover"]);
            workers.iter_mut().for_each(|worker| worker.check_what_was_stored(&volume.mountpoint()));
        } else {
            volume.mount_with(options);
            workers.iter_mut().for_each(|worker| worker.check_survivors(&volume.mountpoint()));
        }
    }
    volume.report("kill_operations", acknowledged);
}

fn expect_what_kills_bring(volume: &Volume) {
    volume.expect_complaints(&["dead mount", "not unmounted", "recover"]);
}

/// Has threads work, kills the daemon at a moment that the dice say; returns how many operations were acknowledged.
fn work_until_killed(volume: &Volume, workers: &mut [Worker], dice: &mut Noise) -> u64 {
    let threads = usize::try_from(2 + dice.number() % (THREADS_MAX - 1)).expect("small");
    let operations = 1 + dice.number() % (1 + dice.number() % OPERATIONS_MAX);
    let (fire, fired) = sync_channel(1);
    let trigger = Trigger::new(operations, dice.number().is_multiple_of(2), fire);
    let (mountpoint, daemon) = (volume.mountpoint(), daemon(volume));
    std::thread::scope(|scope| {
        let mut working = Vec::new();
        for worker in workers.iter_mut().take(threads) {
            let (seed, mountpoint, trigger) = (dice.number(), &mountpoint, &trigger);
            working.push(scope.spawn(move || worker.work(mountpoint, seed, trigger)));
        }
        // Also if a thread fails, the others go on until then.
        fired.recv_timeout(LIMIT).expect("the threads get on");
        trigger.is_killed.store(true, Ordering::SeqCst);
        kill(daemon, Signal::SIGKILL).expect("kill the daemon");
        let counts: Vec<_> =
            working.into_iter().map(|thread| thread.join().expect("a thread failed")).collect();
        wait_for_end(volume);
        counts.into_iter().sum()
    })
}

fn daemon(volume: &Volume) -> Pid {
    let daemons = volume.daemons();
    assert_eq!(daemons.len(), 1, "one process per mount");
    Pid::from_raw(daemons[0])
}

fn wait_for_end(volume: &Volume) {
    let begun = Instant::now();
    while !volume.daemons().is_empty() {
        assert!(begun.elapsed() < LIMIT, "SIGKILL ends a process");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(volume.is_mounted(), "a dead mount stays in the table");
}

/// Deletes everything that the killed daemon had on this machine.
fn lose_machine(volume: &Volume) {
    umount2(&volume.mountpoint(), MntFlags::MNT_DETACH).expect("unmount what is dead");
    volume.wipe_local();
}
