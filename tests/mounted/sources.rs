//! A tree of 5,000 real files goes in and out by the usual tools, and is there again without the machine.

use std::time::Duration;

use crate::command::{require, script_within};
use crate::mount::{Volume, on_each_backend};
use crate::tree::{self, assert_same, picture};

on_each_backend! {
    a_tree_copied_in_is_there_again_from_the_store_alone within 600 s,
}

const LIMIT: Duration = Duration::from_secs(240);

/// Digests of all files with their names, as anybody would list them.
const HASH_LIST: &str = "find . -type f -print0 | sort -z | xargs -0 sha256sum";

fn a_tree_copied_in_is_there_again_from_the_store_alone(volume: &Volume) {
    require(&["rsync", "tar", "diff"]);
    let (sources, mountpoint) = (tree::sources(), volume.mountpoint());
    let from = sources.display();
    volume.mount();
    script_within(LIMIT, &mountpoint, &format!("cp -a {from} copied"));
    script_within(LIMIT, &mountpoint, &format!("rsync -a {from}/ synced/"));
    let again = format!("rsync -a -c --itemize-changes {from}/ synced/");
    let transferred = script_within(LIMIT, &mountpoint, &again);
    let first = transferred.lines().next();
    assert_eq!(first, None, "a second rsync has nothing to do, not {} entries", transferred.lines().count());
    script_within(
        LIMIT,
        &mountpoint,
        &format!("mkdir unpacked; tar -C {from} --format=posix -c . | tar -C unpacked -x"),
    );
    script_within(
        LIMIT,
        &mountpoint,
        &format!("mkdir {0}/out; tar -c copied | tar -C {0}/out -x", volume.scratch().display()),
    );
    script_within(LIMIT, &volume.scratch(), &format!("diff -r --no-dereference {from} out/copied"));

    let expected = picture(sources);
    let list = script_within(LIMIT, sources, HASH_LIST);
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        for copy in ["copied", "synced", "unpacked"] {
            script_within(LIMIT, &mountpoint, &format!("diff -r --no-dereference {from} {copy}"));
            assert_eq!(script_within(LIMIT, &volume.path(copy), HASH_LIST), list, "{copy}");
            assert_same(&expected, &picture(&volume.path(copy)));
        }
    }
}
