//! What a change takes from an executable: suid, sgid and file capabilities, as ext4 takes them on Linux 6.2 and later.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::command::{Finished, Somebody, require, script};
use crate::mount::{Volume, on_each_backend};

on_each_backend! {
    every_change_of_content_or_owner_takes_suid_and_sgid within 240 s,
    a_changed_program_does_not_run_with_its_old_rights within 120 s,
    every_change_of_content_or_owner_takes_file_capabilities within 120 s,
}

/// The file belongs to user and group 100; others may write.
const MEMBER: Somebody = Somebody::alone(100);
const OUTSIDE: Somebody = Somebody { uid: 100, gid: 101, groups: &[] };
const SUPPLEMENTARY: Somebody = Somebody { uid: 100, gid: 101, groups: &[7, 100] };
const OTHER: Somebody = Somebody::alone(101);
const ROOT: Somebody = Somebody::alone(0);

/// Changes of content, by anybody who may write. `source` is readable by all.
const WRITES: [(&str, &str); 10] = [
    ("append", "echo more >> program"),
    ("write and read", "exec 3<>program; echo more >&3"),
    ("direct write", "dd if=/dev/zero of=program bs=4k count=1 conv=notrunc oflag=direct status=none"),
    ("truncate", "truncate -s 3 program"),
    ("O_TRUNC", ": > program"),
    ("fallocate", "fallocate -l 100k program"),
    ("punch", "fallocate -p -o 0 -l 4k program"),
    ("zero", "fallocate -z -o 0 -l 4k program"),
    ("cp", "cp source program"),
    // cp truncates first, and nobody else asks for it by itself.
    (
        "copy_file_range",
        "perl -e 'open A, \"<\", \"source\"; open B, \"+<\", \"program\";
         syscall(NUMBER, fileno A, 0, fileno B, 0, 4096, 0) == 4096 or die $!'",
    ),
];

/// Runs one of [`WRITES`], or a change of the owner.
fn change(who: Somebody, directory: &Path, line: &str) -> Finished {
    who.run(directory, &line.replace("NUMBER", &libc::SYS_copy_file_range.to_string()))
}

fn mode(path: &Path) -> u32 {
    // Nothing but the mode is asked for: a stat of everything would hide what the kernel believes of the mode.
    let shown = script(Path::new("/"), &format!("stat -c %a {}", path.display()));
    u32::from_str_radix(shown.trim(), 8).expect("octal")
}

fn make_program(directory: &Path, mode: u32) {
    script(
        directory,
        &format!("rm -f program; echo program > program; chown 100:100 program; chmod {mode:o} program"),
    );
}

fn every_change_of_content_or_owner_takes_suid_and_sgid(volume: &Volume) {
    require(&["setpriv", "perl"]);
    volume.mount();
    let (root, program) = (volume.mountpoint(), volume.path("program"));
    script(&root, "head -c 9000 /dev/zero > source; chmod 644 source");
    for (before, by_member, by_stranger) in [
        (0o6666, 0o2666, 0o666),
        (0o6777, 0o777, 0o777),
        (0o2676, 0o676, 0o676),
        (0o2766, 0o2766, 0o766),
        (0o4716, 0o716, 0o716),
    ] {
        let check = |who: Somebody, (what, line): (&str, &str), expected: u32| {
            make_program(&root, before);
            let finished = change(who, &root, line);
            assert_eq!(finished.code, Some(0), "{what} of {before:o} by {who:?}: {}", finished.stderr);
            assert_eq!(mode(&program), expected, "{what} of {before:o} by {who:?}");
        };
        for write in WRITES {
            check(MEMBER, write, by_member);
            check(OTHER, write, if before & 0o002 == 0 { before } else { by_stranger });
            check(ROOT, write, before);
        }
        for write in [WRITES[0], WRITES[3], WRITES[5]] {
            check(SUPPLEMENTARY, write, by_member);
            check(OUTSIDE, write, by_stranger);
        }
        let chown = |line| ("chown", line);
        for who in [MEMBER, SUPPLEMENTARY, ROOT] {
            check(who, chown("chown 100:100 program"), by_member);
        }
        check(OUTSIDE, chown("chown 100 program"), by_stranger);
        check(ROOT, ("chown to others", "chown 200:200 program"), by_member);
        check(ROOT, ("touch", "touch program; chmod o+r program"), before | 0o004);
    }
    script(&root, "mkdir directory; chmod 6777 directory; chown 100:100 directory");
    assert_eq!(mode(&volume.path("directory")), 0o6777, "of a directory nothing is taken");
    let kept = fs::metadata(&program).expect("stat").mode();
    volume.remount_from_the_store_alone();
    assert_eq!(fs::metadata(&program).expect("stat").mode(), kept);
}

/// The kernel executes by the mode it remembers, and does not ask again before: so it must have been told.
fn a_changed_program_does_not_run_with_its_old_rights(volume: &Volume) {
    require(&["setpriv"]);
    volume.mount();
    let root = volume.mountpoint();
    let nobody = Somebody::alone(65534);
    // Each leaves a program that still works, and runs it at once.
    for change in [
        "printf x >> program",
        "dd if=/dev/null of=program bs=1 seek=100k conv=notrunc status=none; truncate -s 200k program",
        "cat same > program",
        "cp same program",
        "fallocate -l 300k program",
        "exec 3<>program; printf '\\177' >&3; exec 3>&-",
    ] {
        script(&root, "rm -f program same; cp $(command -v id) program; cp program same; chmod 4777 program");
        assert_eq!(nobody.run(&root, "./program -u").stdout.trim(), "0", "suid works before {change}");
        let ran = nobody.run(&root, &format!("{change}; exec ./program -u"));
        assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "65534"), "{change}: {}", ran.stderr);
    }
}

fn every_change_of_content_or_owner_takes_file_capabilities(volume: &Volume) {
    require(&["setpriv", "setcap", "perl"]);
    volume.mount();
    let root = volume.mountpoint();
    script(&root, "head -c 9000 /dev/zero > source; chmod 644 source");
    let capabilities = || script(&root, "getcap program").trim().to_owned();
    let set = || {
        make_program(&root, 0o777);
        script(&root, "setcap cap_net_raw,cap_chown+ep program");
        assert_eq!(capabilities(), "program cap_chown,cap_net_raw=ep");
    };
    for who in [MEMBER, OTHER, ROOT] {
        for (what, line) in WRITES {
            set();
            let finished = change(who, &root, line);
            assert_eq!(finished.code, Some(0), "{what} by {who:?}: {}", finished.stderr);
            assert_eq!(capabilities(), "", "{what} by {who:?}");
        }
    }
    for (who, line) in
        [(MEMBER, "chown 100:100 program"), (ROOT, "chown 200:200 program"), (ROOT, "setcap -r program")]
    {
        set();
        assert!(who.may(&root, line));
        assert_eq!(capabilities(), "", "{line}");
    }
    set();
    script(
        &root,
        "chmod 755 program; touch program; mv program moved; ln moved program; setfattr -h -n user.a -v b program 2>&- || true",
    );
    assert!(!MEMBER.may(&root, "setcap cap_chown+ep program"), "only for those with CAP_SETFCAP");
    volume.remount_from_the_store_alone();
    assert_eq!(
        capabilities(),
        "program cap_chown,cap_net_raw=ep",
        "nothing else takes them, and they are stored"
    );

    // They do what they are for, until the program changes.
    script(&root, "cp $(command -v chown) program; chmod 755 program; setcap cap_chown+ep program; : > file");
    assert!(MEMBER.may(&root, "./program 300 file"));
    assert_eq!(fs::metadata(volume.path("file")).expect("stat").uid(), 300);
    script(&root, "printf x >> program");
    assert!(!MEMBER.may(&root, "./program 400 file"));
}
