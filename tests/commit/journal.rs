//! The remote tier: journal, fence, checkpoints, and building everything again from the bucket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gravitonfs::base::hash::Hash;
use gravitonfs::base::ids::{PackId, Seq, WriterId};
use gravitonfs::base::time::Random as _;
use gravitonfs::commit::{Batch, Committer, Limits};
use gravitonfs::maint::recovery::{Access, MountError};
use gravitonfs::rt::SeededRandom;
use gravitonfs::store::block::{Receipt, UploadTicket};
use gravitonfs::store::device::Directory as _;
use gravitonfs::store::object::ImmutableObjectStore as _;
use gravitonfs::store::{Kind, keys};

use crate::support::*;

fn rows(committer: &Committer) -> Model {
    dump(&committer.view().expect("view"), &SYNCED)
}

fn synced(model: &Model) -> Model {
    model.iter().filter(|((table, _), _)| table.0 < 0x80).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn records(machine: &Machine, bucket: &Bucket) -> Vec<u64> {
    let page = machine.runtime.block_on(bucket.inner.list(keys::JOURNAL, None)).expect("listable");
    page.objects.iter().filter_map(|object| keys::parse_journal(&object.key)).map(|name| name.seq.0).collect()
}

#[test]
fn a_machine_with_an_empty_disk_finds_what_was_flushed() {
    for seed in 0..6 {
        let random = SeededRandom::new(seed);
        let (machine, bucket) = (Machine::new(), Bucket::new());
        let mut model = Model::new();
        for _ in 0..3 {
            let mounted = machine.mount(&bucket, small_limits());
            for step in 0..150 {
                let ticket = mounted.committer.submit(random_batch(&random, &mut model)).expect("submits");
                if random.next_u64().is_multiple_of(50) {
                    machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
                }
                if step == 75 && seed % 2 == 0 {
                    machine.runtime.block_on(mounted.committer.checkpoint()).expect("checkpoint");
                }
            }
            assert_eq!(rows(&mounted.committer), synced(&model));
            machine.runtime.block_on(mounted.committer.close()).expect("closes");
            assert_eq!(mounted.committer.pending(), Default::default());

            let other = Machine::new();
            let elsewhere = other.recover(&bucket, Access::ReadOnly, small_limits()).expect("rebuilds");
            assert!(elsewhere.rebuilt);
            assert_eq!(rows(&elsewhere.committer), synced(&model), "seed {seed}");
        }
        let found = records(&machine, &bucket);
        assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>(), "dense from 1");
    }
}

#[test]
fn a_checkpoint_serves_without_the_records_before_it() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let mounted = machine.mount(&bucket, small_limits());
    let mut model = Model::new();
    let random = SeededRandom::new(7);
    for _ in 0..300 {
        let _ = mounted.committer.submit(random_batch(&random, &mut model)).expect("submits");
    }
    let seq = machine.runtime.block_on(mounted.committer.checkpoint()).expect("checkpoint");
    for _ in 0..50 {
        let _ = mounted.committer.submit(random_batch(&random, &mut model)).expect("submits");
    }
    machine.runtime.block_on(mounted.committer.close()).expect("closes");
    let below: Vec<_> = (1..=seq.0).map(|seq| keys::journal(Seq(seq))).collect();
    machine.runtime.block_on(bucket.inner.delete(&below)).expect("deletes");
    let other = Machine::new().recover(&bucket, Access::ReadOnly, small_limits()).expect("rebuilds");
    assert_eq!(rows(&other.committer), synced(&model));
}

#[test]
fn checkpoints_are_taken_when_enough_records_have_come() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let limits = Limits { checkpoint_records: 5, ..small_limits() };
    let mounted = machine.mount(&bucket, limits);
    let count = || {
        let page = machine.runtime.block_on(bucket.inner.list(keys::CHECKPOINTS, None)).expect("listable");
        page.objects.iter().filter(|object| keys::parse_checkpoint_root(&object.key).is_some()).count()
    };
    // Checkpoints are written behind the records: how many of these come meanwhile is open.
    let mut flushed = 0u32;
    while count() < 2 {
        flushed += 1;
        assert!(flushed < 20_000, "no checkpoint comes");
        let ticket = mounted.committer.submit(put(ROWS, b"k", &flushed.to_le_bytes())).expect("submits");
        machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
    }
    assert!(flushed >= 9, "not at every record: {flushed}");
}

#[test]
fn a_lost_answer_is_not_a_fence() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    bucket.lose_answers.store(1, Ordering::SeqCst);
    let access = Access::Write(claim(&machine, "host"));
    // The answer to the fence itself is lost: the mount fails, and the next one takes the volume all the same.
    assert!(machine.recover(&bucket, access, Limits::default()).is_err());
    let mounted = machine.mount(&bucket, Limits::default());
    bucket.lose_answers.store(1, Ordering::SeqCst);
    let ticket = mounted.committer.submit(put(ROWS, b"k", b"v")).expect("submits");
    machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
    let _ = mounted.committer.submit(put(ROWS, b"k", b"w")).expect("not fenced");
    machine.runtime.block_on(mounted.committer.close()).expect("closes");
}

#[test]
fn a_second_writer_is_refused_and_with_takeover_fences_the_first() {
    let (first, second, bucket) = (Machine::new(), Machine::new(), Bucket::new());
    let mounted = first.mount(&bucket, Limits::default());
    let ticket = mounted.committer.submit(put(ROWS, b"k", b"1")).expect("submits");
    first.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");

    let claim = claim(&second, "elsewhere");
    let refused = second.recover(&bucket, Access::Write(claim.clone()), Limits::default()).err();
    assert!(matches!(refused, Some(MountError::Held(holder)) if holder.host == "host" && !holder.released));
    let taken = gravitonfs::maint::recovery::Claim { takeover: true, ..claim };
    let taken = second.recover(&bucket, Access::Write(taken), Limits::default()).expect("takes over");
    assert!(taken.epoch > mounted.epoch);
    assert_eq!(taken.committer.get(ROWS, b"k").expect("readable"), Some(b"1".to_vec()));

    let late = mounted.committer.submit(put(ROWS, b"k", b"late")).expect("it does not know yet");
    let kind = |outcome: gravitonfs::store::Result<()>| outcome.map_err(|error| error.kind);
    assert_eq!(kind(first.runtime.block_on(mounted.committer.flush(late))), Err(Kind::Fenced));
    assert_eq!(kind(mounted.committer.submit(put(ROWS, b"k", b"x")).map(|_| ())), Err(Kind::Fenced));
    first.runtime.block_on(mounted.committer.stop()).expect("local state is whole");

    // The first one comes back: its late change conflicts with nothing so far, the fence changed no data.
    taken.committer.attach_staging(Arc::new(Packs::default()));
    second.runtime.block_on(taken.committer.close()).expect("closes");
    let back = first.mount(&bucket, Limits::default());
    assert_eq!(back.committer.get(ROWS, b"k").expect("readable"), Some(b"late".to_vec()));
    first.runtime.block_on(back.committer.close()).expect("closes");
    let other = Machine::new().recover(&bucket, Access::ReadOnly, small_limits()).expect("rebuilds");
    assert_eq!(other.committer.get(ROWS, b"k").expect("readable"), Some(b"late".to_vec()));
}

#[test]
fn changes_of_two_hosts_that_do_not_know_each_other_are_not_mixed() {
    let (first, second, bucket) = (Machine::new(), Machine::new(), Bucket::new());
    let mounted = first.mount(&bucket, Limits::default());
    bucket.down.store(true, Ordering::SeqCst);
    let _ = mounted.committer.submit(put(ROWS, b"k", b"unsent")).expect("submits");
    first.runtime.block_on(mounted.committer.stop()).expect("stops");
    drop(mounted);
    bucket.down.store(false, Ordering::SeqCst);

    let taken = gravitonfs::maint::recovery::Claim { takeover: true, ..claim(&second, "elsewhere") };
    let taken = second.recover(&bucket, Access::Write(taken), Limits::default()).expect("takes over");
    taken.committer.attach_staging(Arc::new(Packs::default()));
    let _ = taken.committer.submit(put(ROWS, b"k", b"theirs")).expect("submits");
    second.runtime.block_on(taken.committer.close()).expect("closes");

    for _ in 0..2 {
        let access = Access::Write(claim(&first, "host"));
        let refused = first.recover(&bucket, access, Limits::default()).err();
        assert!(matches!(refused, Some(MountError::Diverged { .. })), "{refused:?}");
    }
}

#[test]
fn what_another_host_wrote_arrives_at_the_next_mount() {
    let (first, second, bucket) = (Machine::new(), Machine::new(), Bucket::new());
    let mut model = Model::new();
    let random = SeededRandom::new(3);
    for round in 0..6 {
        let machine = if round % 2 == 0 { &first } else { &second };
        let mounted = machine.mount(&bucket, small_limits());
        model.retain(|(table, _), _| table.0 < 0x80);
        assert_eq!(rows(&mounted.committer), model, "round {round}");
        for _ in 0..60 {
            let _ = mounted.committer.submit(random_batch(&random, &mut model)).expect("submits");
        }
        machine.runtime.block_on(mounted.committer.close()).expect("closes");
    }
}

#[test]
fn unsent_changes_survive_a_power_cut_and_are_sent_by_the_next_mount() {
    for seed in 0..24 {
        let random = SeededRandom::new(seed);
        let (mut machine, bucket) = (Machine::new(), Bucket::new());
        let mut model = Model::new();
        let mounted = machine.mount(&bucket, small_limits());
        let mut states = vec![Model::new()];
        let mut flushed = 0;
        for step in 0..400 {
            let ticket = mounted.committer.submit(random_batch(&random, &mut model)).expect("submits");
            states.push(synced(&model));
            if step == 40 {
                machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
                bucket.lose_answers.store((seed % 2) as usize, Ordering::SeqCst);
            }
            if step == 80 {
                machine.runtime.block_on(mounted.committer.sync_local(ticket)).expect("syncs");
                flushed = states.len() - 1;
            }
        }
        machine.power_cut(&random);
        drop(mounted);
        bucket.lose_answers.store(0, Ordering::SeqCst);
        let mounted = machine.mount(&bucket, small_limits());
        let found = rows(&mounted.committer);
        let survived = states.iter().rposition(|state| *state == found);
        assert!(survived.is_some_and(|at| flushed <= at), "seed {seed}: {survived:?}");
        machine.runtime.block_on(mounted.committer.close()).expect("closes");
        let other = Machine::new().recover(&bucket, Access::ReadOnly, small_limits()).expect("rebuilds");
        assert_eq!(rows(&other.committer), found, "seed {seed}");
    }
}

#[test]
fn a_record_waits_for_the_packs_its_batches_name() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let mounted = machine.mount(&bucket, Limits::default());
    let (promise, upload) = UploadTicket::pending();
    let pack = PackId { writer: WriterId(5), number: 1 };
    let _ = mounted.committer.submit(put(ROWS, b"before", b"1")).expect("submits");
    let mut batch = put(ROWS, b"named", b"2");
    batch.needs.push((pack, upload));
    let ticket = mounted.committer.submit(batch).expect("visible at once");
    assert_eq!(mounted.committer.get(ROWS, b"named").expect("readable"), Some(b"2".to_vec()));
    let flush = tokio::spawn_on(&machine, mounted.committer.clone(), ticket);
    // What comes before is sent; the batch is not.
    let seen = |key: &[u8]| {
        let other = Machine::new().recover(&bucket, Access::ReadOnly, Limits::default()).expect("rebuilds");
        other.committer.get(ROWS, key).expect("readable").is_some()
    };
    wait_until(|| seen(b"before"));
    assert!(!seen(b"named") && !flush.is_finished());
    assert_eq!(mounted.committer.pending().batches, 1);
    promise.fulfil(Receipt { len: 1, footer: Hash::ZERO });
    flush.join().expect("no panic").expect("flushes");
    assert!(seen(b"named"));
}

/// A flush on a thread of its own.
mod tokio {
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use gravitonfs::commit::{Committer, Ticket};
    use gravitonfs::rt::TokioRuntime;
    use gravitonfs::store::Result;

    pub(crate) fn spawn_on(
        _machine: &crate::support::Machine,
        committer: Arc<Committer>,
        ticket: Ticket,
    ) -> JoinHandle<Result<()>> {
        std::thread::spawn(move || {
            TokioRuntime::new(1, 1).expect("threads for a test").block_on(committer.flush(ticket))
        })
    }
}

fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("it did not happen");
}

#[test]
fn after_a_restart_the_staging_area_says_what_a_record_waits_for() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let mounted = machine.mount(&bucket, Limits::default());
    let pack = PackId { writer: WriterId(5), number: 1 };
    let (_lost, upload) = UploadTicket::pending();
    let mut batch = put(ROWS, b"named", b"2");
    batch.needs.push((pack, upload));
    let _ = mounted.committer.submit(batch).expect("submits");
    machine.runtime.block_on(mounted.committer.stop()).expect("stops");
    drop(mounted);

    let access = Access::Write(claim(&machine, "host"));
    let mounted = machine.recover(&bucket, access, Limits::default()).expect("mounts");
    assert_eq!(mounted.committer.pending().batches, 1);
    let packs = Arc::new(Packs::default());
    let (promise, upload) = UploadTicket::pending();
    packs.0.lock().expect("no panic").insert(pack, upload);
    mounted.committer.attach_staging(packs);
    let flush = tokio::spawn_on(&machine, mounted.committer.clone(), mounted.committer.newest());
    let before = bucket.requests();
    promise.fulfil(Receipt { len: 1, footer: Hash::ZERO });
    flush.join().expect("no panic").expect("flushes");
    assert_eq!(bucket.requests(), before + 1);
}

#[test]
fn an_idle_volume_makes_no_request_and_local_rows_never_do() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let limits = Limits {
        record_age: Duration::from_millis(1),
        apply_age: Duration::from_millis(1),
        ..small_limits()
    };
    let mounted = machine.mount(&bucket, limits);
    let ticket = mounted.committer.submit(put(ROWS, b"k", b"v")).expect("submits");
    machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
    let before = bucket.requests();
    for n in 0..200u8 {
        let ticket = mounted.committer.submit(put(LOCAL, &[n], &[0; 200])).expect("submits");
        machine.runtime.block_on(mounted.committer.sync_local(ticket)).expect("syncs");
        machine.runtime.block_on(mounted.committer.flush(ticket)).expect("nothing to send");
    }
    assert_eq!(bucket.requests(), before);
    machine.runtime.block_on(mounted.committer.close()).expect("closes");
    assert_eq!(bucket.requests(), before + 1, "the release");
}

/// The log goes up to where nothing is left to send, which may be beyond the last batch that was sent. A later change
/// then made the store say that the log was needed from that batch on, and the next mount took the difference for lost.
#[test]
fn the_log_is_not_wanted_back_once_it_is_gone() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let limits = Limits {
        durable_age: Duration::from_millis(1),
        apply_age: Duration::from_millis(1),
        ..small_limits()
    };
    let mounted = machine.mount(&bucket, limits);
    let ticket = mounted.committer.submit(put(ROWS, b"k", b"1")).expect("submits");
    machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
    let oldest = || {
        let files = machine.log.list().expect("listable").into_iter();
        files.filter(|(_, len)| *len > 0).map(|(name, _)| name).min().expect("one is in use")
    };
    let first = oldest();
    while oldest() == first {
        let _ = mounted.committer.submit(put(LOCAL, b"k", &[0; 500])).expect("submits");
    }
    bucket.down.store(true, Ordering::SeqCst);
    let _ = mounted.committer.submit(put(ROWS, b"k", b"2")).expect("submits");
    machine.runtime.block_on(mounted.committer.stop()).expect("everything is durable here");
    drop(mounted);
    bucket.down.store(false, Ordering::SeqCst);
    let mounted = machine.mount(&bucket, limits);
    assert_eq!(mounted.committer.get(ROWS, b"k").expect("readable"), Some(b"2".to_vec()));
}

#[test]
fn many_changes_share_few_compact_records() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let mounted = machine.mount(&bucket, Limits::default());
    let random = SeededRandom::new(1);
    for n in 0..5000u64 {
        // About what one new file of one block writes: inode, name, manifest, segment, block, pack, counters, parent.
        let hash: Vec<u8> = (0..4).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        let mut inode = [0u8; 100];
        inode[..8].copy_from_slice(&n.to_le_bytes());
        inode[60..64].copy_from_slice(&(random.next_u64() as u32 % 1_000_000_000).to_le_bytes());
        let mut batch = Batch::new();
        batch.put(ROWS, n.to_be_bytes(), inode);
        batch.put(ROWS, b"parent".to_vec(), inode);
        let name = format!("{:016x} src/module/file_{n}.rs", random.next_u64());
        batch.put(OTHER, name.into_bytes(), n.to_le_bytes());
        let slice = [&hash[..], &4000u32.to_le_bytes(), &[0; 8]].concat();
        batch.put(OTHER, [b"segment", &n.to_be_bytes()[..]].concat(), slice.clone());
        batch.put(OTHER, hash, [&1u32.to_le_bytes()[..], &slice[32..], &[9; 30]].concat());
        batch.delta(add(b"files", 1));
        let _ = mounted.committer.submit(batch).expect("submits");
    }
    machine.runtime.block_on(mounted.committer.flush(mounted.committer.newest())).expect("flushes");
    let page = machine.runtime.block_on(bucket.inner.list(keys::JOURNAL, None)).expect("listable");
    let bytes: u64 = page.objects.iter().map(|object| object.len).sum();
    println!("journal of 5,000 files: records={} bytes={bytes}", page.objects.len());
    assert!(page.objects.len() <= 6, "{} records", page.objects.len());
    assert!(bytes < 5000 * 150, "{bytes} bytes");
}

#[test]
fn a_damaged_or_missing_record_is_named() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let mounted = machine.mount(&bucket, Limits::default());
    for n in 0..3u8 {
        let ticket = mounted.committer.submit(put(ROWS, &[n], b"v")).expect("submits");
        machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
    }
    machine.runtime.block_on(mounted.committer.close()).expect("closes");
    let key = keys::journal(Seq(3));
    let whole = machine.runtime.block_on(bucket.inner.get(&key, None)).expect("exists");
    let rebuild = || {
        let outcome = Machine::new().recover(&bucket, Access::ReadOnly, Limits::default());
        outcome.map(|_| ()).map_err(|error| error.to_string())
    };
    for at in [0, 5, 40, 100, whole.len() - 40, whole.len() - 1] {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 1;
        machine.runtime.block_on(bucket.inner.delete(std::slice::from_ref(&key))).expect("deletes");
        machine.runtime.block_on(bucket.inner.put_new(&key, damaged.into())).expect("free");
        let error = rebuild().expect_err("damaged");
        assert!(error.contains("0000000000000003"), "byte {at}: {error}");
    }
    machine.runtime.block_on(bucket.inner.delete(std::slice::from_ref(&key))).expect("deletes");
    let error = rebuild().expect_err("missing");
    assert!(error.contains("0000000000000003 is missing"), "{error}");
    machine.runtime.block_on(bucket.inner.put_new(&key, whole)).expect("free");
    rebuild().expect("whole again");
}

#[test]
fn a_bucket_that_is_older_than_the_state_is_refused() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    let mounted = machine.mount(&bucket, Limits::default());
    let ticket = mounted.committer.submit(put(ROWS, b"k", b"v")).expect("submits");
    machine.runtime.block_on(mounted.committer.flush(ticket)).expect("flushes");
    machine.runtime.block_on(mounted.committer.close()).expect("closes");
    drop(mounted);
    let last = *records(&machine, &bucket).last().expect("some");
    machine.runtime.block_on(bucket.inner.delete(&[keys::journal(Seq(last))])).expect("deletes");
    let access = Access::Write(claim(&machine, "host"));
    let error = machine.recover(&bucket, access, Limits::default()).err().expect("refused");
    assert!(error.to_string().contains("behind"), "{error}");
}
