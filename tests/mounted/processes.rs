//! Several processes on one mount: locks, appends, exclusive creation, and listing what others change.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::mount::{Volume, on_each_backend};
use crate::syscall::{Child, Listing, Lock, LockKind, let_sigusr1_interrupt, lock};
use crate::tree::Noise;

on_each_backend! {
    locks_exclude_other_processes_until_they_are_released within 120 s,
    locks_of_ranges_exclude_what_overlaps within 120 s,
    a_process_that_waits_for_a_lock_can_be_interrupted within 120 s,
    two_processes_that_would_wait_for_each_other_are_told within 120 s,
    processes_that_append_lose_nothing within 120 s,
    one_of_several_processes_makes_a_name within 120 s,
    a_listing_is_whole_while_others_make_and_remove_names within 180 s,
    a_position_in_a_listing_stays_good within 120 s,
}

const KINDS: [LockKind; 3] = [LockKind::Flock, LockKind::Posix, LockKind::Ofd];
const PROCESSES: u8 = 4;
const WHOLE: (i64, i64) = (0, 0);

fn open(volume: &Volume) -> File {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(volume.path("file"))
        .expect("open")
}

/// 0 if another process gets the lock without waiting, else the errno.
fn try_elsewhere(volume: &Volume, kind: LockKind, wanted: Lock, range: (i64, i64)) -> i32 {
    let attempt = || match lock(&open(volume), kind, wanted, range, false) {
        Ok(()) => 0,
        Err(error) => u8::try_from(error.raw_os_error().unwrap_or(255)).unwrap_or(255),
    };
    Child::start(&volume.directory(), attempt).wait().expect("no signal")
}

fn locks_exclude_other_processes_until_they_are_released(volume: &Volume) {
    volume.mount();
    for kind in KINDS {
        let file = open(volume);
        lock(&file, kind, Lock::Shared, WHOLE, false).expect("a shared lock");
        assert_eq!(try_elsewhere(volume, kind, Lock::Shared, WHOLE), 0, "{kind:?}: shared with shared");
        assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, WHOLE), libc::EAGAIN, "{kind:?}");
        lock(&file, kind, Lock::Exclusive, WHOLE, false).expect("nobody else has one");
        assert_eq!(try_elsewhere(volume, kind, Lock::Shared, WHOLE), libc::EAGAIN, "{kind:?}");
        lock(&file, kind, Lock::None, WHOLE, false).expect("unlock");
        assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, WHOLE), 0, "{kind:?}: after an unlock");

        // On close, which somebody waits for.
        lock(&file, kind, Lock::Exclusive, WHOLE, false).expect("lock");
        let mut waiting = Child::start(&volume.directory(), || {
            u8::from(lock(&open(volume), kind, Lock::Exclusive, WHOLE, true).is_err())
        });
        if kind != LockKind::Posix {
            // The child has the open file too.
            lock(&file, kind, Lock::None, WHOLE, false).expect("unlock");
        }
        drop(file);
        assert_eq!(waiting.wait(), Some(0), "{kind:?}: after a close");

        // On death.
        let (ready, is_ready) = std::io::pipe().map(|(read, write)| (write, read)).expect("pipe");
        let holder = Child::start(&volume.directory(), || {
            let file = open(volume);
            lock(&file, kind, Lock::Exclusive, WHOLE, false).expect("lock");
            (&ready).write_all(b"1").expect("tell");
            loop {
                nix::unistd::pause();
            }
        });
        std::io::Read::read_exact(&mut &is_ready, &mut [0]).expect("it has the lock");
        assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, WHOLE), libc::EAGAIN, "{kind:?}");
        drop(holder);
        lock(&open(volume), kind, Lock::Exclusive, WHOLE, true).expect("the dead have no locks");
    }
}

fn locks_of_ranges_exclude_what_overlaps(volume: &Volume) {
    volume.mount();
    for kind in [LockKind::Posix, LockKind::Ofd] {
        let file = open(volume);
        lock(&file, kind, Lock::Exclusive, (100, 50), false).expect("lock");
        for (range, expected) in
            [((0, 100), 0), ((150, 10), 0), ((149, 1), libc::EAGAIN), ((0, 0), libc::EAGAIN)]
        {
            assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, range), expected, "{kind:?} {range:?}");
        }
        lock(&file, kind, Lock::None, (110, 10), false).expect("unlock the middle");
        assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, (110, 10)), 0, "{kind:?}");
        assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, (109, 2)), libc::EAGAIN, "{kind:?}");
    }
}

fn a_process_that_waits_for_a_lock_can_be_interrupted(volume: &Volume) {
    volume.mount();
    for kind in KINDS {
        let file = open(volume);
        lock(&file, kind, Lock::Exclusive, WHOLE, false).expect("lock");
        let mut waiting = Child::start(&volume.directory(), || {
            let_sigusr1_interrupt();
            let refused = lock(&open(volume), kind, Lock::Exclusive, WHOLE, true).err();
            u8::try_from(refused.and_then(|error| error.raw_os_error()).unwrap_or(0)).unwrap_or(255)
        });
        // A signal that comes before it waits is lost, so it gets another.
        while !waiting.has_ended() {
            if handles_sigusr1(&waiting) {
                waiting.signal(libc::SIGUSR1);
            }
            std::thread::yield_now();
        }
        assert_eq!(waiting.wait(), Some(libc::EINTR), "{kind:?}");
        assert_eq!(try_elsewhere(volume, kind, Lock::Exclusive, WHOLE), libc::EAGAIN, "{kind:?}: still held");
    }
}

/// fcntl(2): EDEADLK for one of the two, whichever came last. flock(2) and OFD locks are not watched, on any filesystem.
fn two_processes_that_would_wait_for_each_other_are_told(volume: &Volume) {
    volume.mount();
    let (mine, theirs) = ((0, 10), (10, 10));
    let file = open(volume);
    lock(&file, LockKind::Posix, Lock::Exclusive, mine, false).expect("lock");
    let mut other = Child::start(&volume.directory(), || {
        let file = open(volume);
        lock(&file, LockKind::Posix, Lock::Exclusive, theirs, true).expect("lock");
        match lock(&file, LockKind::Posix, Lock::Exclusive, mine, true) {
            Ok(()) => 0,
            Err(error) => u8::try_from(error.raw_os_error().unwrap_or(255)).unwrap_or(255),
        }
    });
    // Until the other holds its range there is nothing to wait for: what is locked too early is given back.
    let refused = loop {
        match lock(&file, LockKind::Posix, Lock::Exclusive, theirs, true) {
            Ok(()) if !other.has_ended() => {
                lock(&file, LockKind::Posix, Lock::None, theirs, false).expect("unlock");
                std::thread::yield_now();
            }
            outcome => break outcome.err().and_then(|error| error.raw_os_error()),
        }
    };
    lock(&file, LockKind::Posix, Lock::None, mine, false).expect("unlock");
    let others = other.wait();
    let told = [refused, others].into_iter().filter(|errno| *errno == Some(libc::EDEADLK)).count();
    assert_eq!(told, 1, "{refused:?} {others:?}");
}

/// True once the signal would not end the process.
fn handles_sigusr1(child: &Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
    u64::from_str_radix(caught, 16).unwrap_or(0) & (1 << (libc::SIGUSR1 - 1)) != 0
}

fn processes_that_append_lose_nothing(volume: &Volume) {
    const RECORDS: u32 = 300;
    volume.mount();
    let append = |process: u8| {
        let mut file = OpenOptions::new().create(true).append(true).open(volume.path("log")).expect("open");
        for record in 0..RECORDS {
            // Of different lengths, so that a lost offset shows.
            let line = format!("{process} {record} {}\n", "x".repeat((record % 90) as usize));
            assert_eq!(file.write(line.as_bytes()).expect("append"), line.len());
        }
        0
    };
    let children: Vec<_> =
        (0..PROCESSES).map(|process| Child::start(&volume.directory(), || append(process))).collect();
    children.into_iter().for_each(|mut child| assert_eq!(child.wait(), Some(0)));
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        let text = fs::read_to_string(volume.path("log")).expect("read");
        for process in 0..PROCESSES {
            let own = text.lines().filter(|line| line.starts_with(&format!("{process} ")));
            let expected = (0..RECORDS)
                .map(|record| format!("{process} {record} {}", "x".repeat((record % 90) as usize)));
            assert!(own.eq(expected), "process {process}: its records, in its order");
        }
        assert_eq!(text.lines().count(), usize::from(PROCESSES) * RECORDS as usize);
    }
}

fn one_of_several_processes_makes_a_name(volume: &Volume) {
    const NAMES: u8 = 100;
    volume.mount();
    let claim = || {
        let made = (0..NAMES).filter(|name| {
            let path = volume.path(&format!("name-{name}"));
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
                    false
                }
            }
        });
        u8::try_from(made.count()).expect("at most as many as there are")
    };
    let children: Vec<_> = (0..PROCESSES).map(|_| Child::start(&volume.directory(), claim)).collect();
    let made: i32 = children.into_iter().map(|mut child| child.wait().expect("no signal")).sum();
    assert_eq!(made, i32::from(NAMES), "each name has one maker");
}

fn a_listing_is_whole_while_others_make_and_remove_names(volume: &Volume) {
    const STABLE: usize = 1500;
    volume.mount();
    let directory = volume.path("busy");
    fs::create_dir(&directory).expect("mkdir");
    for number in 0..STABLE {
        File::create(directory.join(format!("stays-{number}"))).expect("create");
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (directory, is_over) = (&directory, &is_over);
            scope.spawn(move || {
                for number in (0..200).cycle() {
                    let path = directory.join(format!("comes-{worker}-{number}"));
                    File::create(&path).expect("create");
                    if number % 3 == 0 {
                        fs::rename(&path, directory.join(format!("moved-{worker}"))).expect("rename");
                    } else {
                        fs::remove_file(&path).expect("remove");
                    }
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let outcome = std::panic::catch_unwind(|| {
            for _ in 0..12 {
                let names: Vec<_> = Listing::open(&directory).expect("open").collect();
                let distinct: HashSet<_> = names.iter().collect();
                // A name that goes and comes back during one listing may be listed again; these stay.
                let stays = |name: &&std::ffi::CString| name.as_bytes().starts_with(b"stays-");
                assert_eq!(names.iter().filter(stays).count(), STABLE, "none is missed and none comes twice");
                assert_eq!(distinct.iter().filter(|name| stays(name)).count(), STABLE);
            }
        });
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn a_position_in_a_listing_stays_good(volume: &Volume) {
    volume.mount();
    let directory = volume.path("listed");
    fs::create_dir(&directory).expect("mkdir");
    for number in 0..2000 {
        File::create(directory.join(format!("entry-{number}"))).expect("create");
    }
    let mut listing = Listing::open(&directory).expect("open");
    let mut seen = Vec::new();
    loop {
        let position = listing.tell();
        let Some(name) = listing.next() else { break };
        seen.push((position, name));
    }
    assert_eq!(seen.len(), 2002);
    let mut dice = Noise::new(71);
    let mut check = |listing: &mut Listing| {
        for _ in 0..200 {
            let at = usize::try_from(dice.number() % seen.len() as u64).expect("small");
            let is_left = |name: &std::ffi::CString| directory.join(name.to_str().expect("text")).exists();
            listing.seek(seen[at].0);
            let expected: Vec<_> = seen[at..]
                .iter()
                .map(|(_, name)| name)
                .filter(|name| is_left(name))
                .take(3)
                .cloned()
                .collect();
            assert_eq!(listing.take(expected.len()).collect::<Vec<_>>(), expected, "from entry {at} on");
        }
    };
    check(&mut listing);
    for number in (0..2000).step_by(3) {
        fs::remove_file(directory.join(format!("entry-{number}"))).expect("remove");
    }
    check(&mut Listing::open(&directory).expect("open anew"));
}
