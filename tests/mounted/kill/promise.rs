//! What was written a while ago survives a kill although nobody asked for it to be safe.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::content::Content;
use super::worker::is_death;
use super::{daemon, expect_what_kills_bring, wait_for_end};
use crate::command::LIMIT;
use crate::mount::{Volume, number, on_each_backend};
use crate::tree::{MIB, Noise};

on_each_backend! {
    what_status_calls_clean_survives_a_kill within 300 s,
    what_was_written_a_while_ago_survives_a_kill_in_the_middle_of_writing within 300 s,
}

/// Written bytes stay in memory for 0.9 s, are looked at every 0.1 s, and take a moment to be staged; on a busy machine it
/// may be twice that.
const AGE_MAX: Duration = Duration::from_secs(2);

fn what_status_calls_clean_survives_a_kill(volume: &Volume) {
    expect_what_kills_bring(volume);
    volume.mount();
    for round in 0..2_u64 {
        let mut files = Vec::new();
        for (index, len) in [0, 1, 2_000, 70_000, MIB, 9 * MIB + 77].into_iter().enumerate() {
            let name = format!("file-{round}-{index}");
            let bytes = Noise::new(round * 100 + index as u64).take(len);
            fs::write(volume.path(&name), &bytes).expect("write");
            files.push((name, bytes));
        }
        // In the middle of what the round before left.
        if let Some((_, bytes)) = files.last_mut().filter(|_| 0 < round) {
            let file = File::options().write(true).open(volume.path(&format!("file-{}-5", round - 1)));
            file.and_then(|file| file.write_all_at(&bytes[..50_000], 4_000_001)).expect("write");
        }
        wait_until_clean(volume);
        kill(daemon(volume), Signal::SIGKILL).expect("kill the daemon");
        wait_for_end(volume);
        volume.mount();
        for (name, bytes) in &files {
            let found = fs::read(volume.path(name)).expect("read");
            assert!(found == *bytes, "{name}: {:?}", Content::safe(bytes.clone()).refute(&found));
        }
        if 0 < round {
            let found = fs::read(volume.path(&format!("file-{}-5", round - 1))).expect("read");
            let (_, bytes) = files.last().expect("made above");
            assert!(found[4_000_001..4_050_001] == bytes[..50_000], "what was overwritten is old again");
        }
    }
}

/// Returns once no written bytes are in memory only.
fn wait_until_clean(volume: &Volume) {
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        let dirty = number(&volume.status(), "dirty_bytes");
        if dirty == 0 {
            return;
        }
        assert!(asked - begun < AGE_MAX, "{dirty} bytes are in memory only for {:?}", asked - begun);
    }
}

/// What was written to a file by one thread, and when it was acknowledged.
struct Written {
    content: Content,
    acknowledged: Vec<Instant>,
}

/// Bytes of one write: not a multiple of anything that the filesystem counts in.
const PIECE: usize = 5_003;
/// Files that are written over are as long as that many pieces.
const PIECES: u64 = 300;

/// Writes pieces until the daemon is gone: with the first seed one behind the other, else at random places.
fn write_until_killed(
    path: &Path,
    seed: u64,
    old: &SyncSender<()>,
    is_killed: &AtomicBool,
) -> io::Result<Written> {
    let appends = seed == 1;
    let file = File::create(path)?;
    let mut dice = Noise::new(seed);
    let mut written = Written { content: Content::default(), acknowledged: Vec::new() };
    let begun = Instant::now();
    loop {
        let at = if appends { written.acknowledged.len() as u64 } else { dice.number() % PIECES };
        let (offset, bytes) = (at * PIECE as u64, dice.take(PIECE));
        let result = file.write_all_at(&bytes, offset);
        // It may be there although nobody was told.
        written.content.write(usize::try_from(offset).expect("small"), &bytes);
        match result {
            Ok(()) => written.acknowledged.push(Instant::now()),
            Err(error) if is_death(&error, is_killed) => return Ok(written),
            Err(error) => return Err(error),
        }
        if AGE_MAX + Duration::from_millis(700) < begun.elapsed() {
            // Whoever kills needs to be told once only.
            let _ = old.try_send(());
        }
    }
}

fn what_was_written_a_while_ago_survives_a_kill_in_the_middle_of_writing(volume: &Volume) {
    expect_what_kills_bring(volume);
    volume.mount();
    let paths = ["appended", "overwritten"].map(|name| volume.path(name));
    let daemon = daemon(volume);
    let (old, is_old) = sync_channel(1);
    let is_killed = AtomicBool::new(false);
    let (killed, written) = std::thread::scope(|scope| {
        let threads: Vec<_> = paths
            .iter()
            .zip(1..)
            .map(|(path, seed)| {
                let (old, is_killed) = (&old, &is_killed);
                scope.spawn(move || write_until_killed(path, seed, old, is_killed))
            })
            .collect();
        is_old.recv_timeout(LIMIT).expect("the writers get on");
        let killed = Instant::now();
        is_killed.store(true, Ordering::SeqCst);
        kill(daemon, Signal::SIGKILL).expect("kill the daemon");
        let written: Vec<_> =
            threads.into_iter().map(|thread| thread.join().expect("a writer").expect("write")).collect();
        (killed, written)
    });
    wait_for_end(volume);
    volume.mount();
    for (path, Written { mut content, acknowledged }) in paths.iter().zip(written) {
        let is_old = |at: &&Instant| **at + AGE_MAX < killed;
        let old = acknowledged.iter().filter(is_old).count();
        assert!(0 < old, "nothing was old when the kill came");
        content.settle_first(old);
        let found = fs::read(path).expect("read");
        if let Some(why) = content.refute(&found) {
            panic!("{}: of {} writes {old} were old: {why}", path.display(), acknowledged.len());
        }
    }
}
