//! Stores that do not create atomically: records have names that no two writers share, and one chain of them counts.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

use gravitonfs::commit::Limits;
use gravitonfs::maint::recovery::{Access, Claim, MountError, Mounted};
use gravitonfs::store::object::ImmutableObjectStore as _;
use gravitonfs::store::{Kind, keys};

use crate::support::*;

fn weak_bucket() -> Arc<Bucket> {
    let bucket = Bucket::new();
    bucket.weak.store(true, Ordering::SeqCst);
    bucket
}

/// Names of all records: true for those of a writer's own.
fn names(machine: &Machine, bucket: &Bucket) -> Vec<(String, bool)> {
    let page = machine.runtime.block_on(bucket.inner.list(keys::JOURNAL, None)).expect("listable");
    let named = |object: &gravitonfs::store::object::ObjectMeta| {
        let name = keys::parse_journal(&object.key).expect("a record");
        (object.key.to_string(), name.own.is_some())
    };
    page.objects.iter().map(named).collect()
}

fn take_over(machine: &Machine, bucket: &Arc<Bucket>, host: &str) -> Result<Mounted, MountError> {
    let claim = Claim { takeover: true, ..claim(machine, host) };
    let mounted = machine.recover(bucket, Access::Write(claim), Limits::default())?;
    mounted.committer.attach_staging(Arc::new(Packs::default()));
    Ok(mounted)
}

fn write(machine: &Machine, mounted: &Mounted, key: &[u8], value: &[u8]) -> Result<(), Kind> {
    let ticket = mounted.committer.submit(put(ROWS, key, value)).map_err(|error| error.kind)?;
    machine.runtime.block_on(mounted.committer.flush(ticket)).map_err(|error| error.kind)
}

fn read(mounted: &Mounted, key: &[u8]) -> Option<Vec<u8>> {
    mounted.committer.get(ROWS, key).expect("readable")
}

fn rebuilt(bucket: &Arc<Bucket>) -> Mounted {
    Machine::new().recover(bucket, Access::ReadOnly, Limits::default()).expect("rebuilds")
}

#[test]
fn a_volume_moves_between_stores_that_create_atomically_and_such_that_do_not() {
    let (machine, bucket) = (Machine::new(), Bucket::new());
    for (round, (weak, own)) in [(false, false), (true, true), (false, true)].into_iter().enumerate() {
        bucket.weak.store(weak, Ordering::SeqCst);
        let before: BTreeSet<_> = names(&machine, &bucket).into_iter().collect();
        let key = [round as u8];
        let mounted = machine.mount(&bucket, Limits::default());
        write(&machine, &mounted, &key, b"v").expect("flushes");
        machine.runtime.block_on(mounted.committer.close()).expect("closes");
        let new: Vec<_> =
            names(&machine, &bucket).into_iter().filter(|name| !before.contains(name)).collect();
        assert_eq!(new.len(), 3, "fence, data, release");
        assert!(new.iter().all(|(_, is_own)| *is_own == own), "round {round}: {new:?}");
        let found = rebuilt(&bucket);
        assert_eq!(read(&found, &key), Some(b"v".to_vec()));
        assert!(found.other_branches.is_empty());
    }
}

#[test]
fn a_writer_that_lost_the_volume_learns_it_before_it_acknowledges_and_its_branch_is_kept() {
    let (first, second, bucket) = (Machine::new(), Machine::new(), weak_bucket());
    let mounted = first.mount(&bucket, Limits::default());
    write(&first, &mounted, b"k", b"1").expect("acknowledged");
    let refused = second.recover(&bucket, Access::Write(claim(&second, "elsewhere")), Limits::default());
    assert!(matches!(refused.err(), Some(MountError::Held(_))), "held is held");

    let taken = take_over(&second, &bucket, "elsewhere").expect("takes over");
    assert_eq!(read(&taken, b"k"), Some(b"1".to_vec()));
    write(&second, &taken, b"k", b"2").expect("acknowledged");
    let before = names(&first, &bucket).len();
    assert_eq!(write(&first, &mounted, b"k", b"late"), Err(Kind::Fenced));
    assert_eq!(names(&first, &bucket).len(), before + 1, "the late record has a place of its own");
    first.runtime.block_on(mounted.committer.stop()).expect("local state is whole");
    second.runtime.block_on(taken.committer.close()).expect("closes");

    let found = rebuilt(&bucket);
    assert_eq!(read(&found, b"k"), Some(b"2".to_vec()));
    assert_eq!(found.other_branches.len(), 1, "{:?}", found.other_branches);
    let back = first.recover(&bucket, Access::Write(claim(&first, "host")), Limits::default());
    assert!(matches!(back.err(), Some(MountError::Diverged { .. })), "its change cannot follow");
    let later = take_over(&second, &bucket, "elsewhere").expect("goes on");
    write(&second, &later, b"k", b"3").expect("acknowledged");
    assert_eq!(read(&rebuilt(&bucket), b"k"), Some(b"3".to_vec()));
    assert!(before < names(&first, &bucket).len(), "nothing is deleted");
    assert_eq!(*bucket.overwritten.lock().expect("no panic"), Vec::<String>::new());
}

/// Two hosts take one volume at the same moment and write. Where creates are atomic the record excludes one of them; here
/// both can have records at one sequence. What was acknowledged to either must be in the volume that others find.
#[test]
fn two_writers_at_the_same_moment_lose_nothing_that_was_acknowledged() {
    let mut both_wrote = 0;
    for round in 0..40u8 {
        let (bucket, barrier) = (weak_bucket(), Arc::new(Barrier::new(2)));
        let writers: Vec<_> = ["one", "other"]
            .into_iter()
            .map(|host| {
                let (bucket, barrier) = (bucket.clone(), barrier.clone());
                std::thread::spawn(move || {
                    let machine = Machine::new();
                    barrier.wait();
                    let Ok(mounted) = take_over(&machine, &bucket, host) else { return Vec::new() };
                    let mut acknowledged = Vec::new();
                    for n in 0..8u8 {
                        let key = format!("{host}-{n}").into_bytes();
                        if write(&machine, &mounted, &key, b"v").is_ok() {
                            acknowledged.push(key);
                        }
                    }
                    machine.runtime.block_on(mounted.committer.stop()).expect("stops");
                    acknowledged
                })
            })
            .collect();
        let acknowledged: Vec<_> =
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        both_wrote += usize::from(acknowledged.iter().all(|keys| !keys.is_empty()));
        let found = rebuilt(&bucket);
        for key in acknowledged.iter().flatten() {
            let text = String::from_utf8_lossy(key);
            assert_eq!(read(&found, key), Some(b"v".to_vec()), "round {round}: {text} is lost");
        }
        assert_eq!(*bucket.overwritten.lock().expect("no panic"), Vec::<String>::new(), "round {round}");
    }
    println!("rounds in which both wrote: {both_wrote}");
}

#[test]
fn of_two_that_take_a_released_volume_at_the_same_moment_at_most_one_holds_it() {
    for round in 0..20 {
        let (bucket, barrier) = (weak_bucket(), Arc::new(Barrier::new(2)));
        let writers: Vec<_> = ["one", "other"]
            .into_iter()
            .map(|host| {
                let (bucket, barrier) = (bucket.clone(), barrier.clone());
                std::thread::spawn(move || {
                    let machine = Machine::new();
                    barrier.wait();
                    let access = Access::Write(claim(&machine, host));
                    match machine.recover(&bucket, access, Limits::default()) {
                        Ok(mounted) => {
                            machine.runtime.block_on(mounted.committer.stop()).expect("stops");
                            true
                        }
                        Err(MountError::Held(_)) => false,
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        let held: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        assert_eq!(held.iter().filter(|held| **held).count(), 1, "round {round}: {held:?}");
    }
}
