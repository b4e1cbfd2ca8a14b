//! What copies and edits cost, in requests and bytes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use crate::command::script_within;
use crate::mount::{Volume, on_each_backend};
use crate::tree::{self, MIB, Noise, digest, write_noise};

on_each_backend! {
    five_thousand_files_cost_few_puts_and_their_names_no_request within 600 s,
    a_second_copy_of_a_tree_costs_only_its_names within 600 s,
    copies_and_edits_of_a_large_file_send_only_what_is_new within 1200 s,
}

const LIMIT: Duration = Duration::from_secs(240);
const LARGE: usize = 1 << 30;

fn five_thousand_files_cost_few_puts_and_their_names_no_request(volume: &Volume) {
    volume.mount();
    volume.sync();
    let before = volume.requests();
    let seen_before = volume.server.as_ref().map(|_| volume.server_requests());
    let line = format!("cp -a {} tree", tree::sources().display());
    script_within(LIMIT, &volume.mountpoint(), &line);
    volume.sync();
    let cost = volume.requests().since(&before);
    volume.report("copy_puts", cost.put);
    assert!(cost.put <= 40, "{cost}");
    if let Some(seen_before) = seen_before {
        assert_eq!(volume.server_requests().since(&seen_before), cost, "the server counts as the mount does");
    }

    use_only_names(volume, "first");
    volume.umount();
    volume.mount();
    use_only_names(volume, "second");
    volume.remount_from_the_store_alone();
    use_only_names(volume, "third");
}

fn use_only_names(volume: &Volume, suffix: &str) {
    let before = volume.requests();
    script_within(
        LIMIT,
        &volume.mountpoint(),
        &format!(
            "test $(find tree -type f | wc -l) = {count}
         ls -lR tree > /dev/null
         find tree -print0 | xargs -0 stat > /dev/null
         find tree -type f -name lib.rs -execdir mv {{}} lib-{suffix}.rs \\;
         find tree -type f -name lib-{suffix}.rs -execdir mv {{}} lib.rs \\;
         mv tree tree-{suffix}; ls tree-{suffix} > /dev/null; mv tree-{suffix} tree",
            count = tree::SOURCE_FILES
        ),
    );
    let cost = volume.requests().since(&before);
    assert_eq!(cost.asking(), 0, "names are local ({suffix} mount): {cost}");
}

fn a_second_copy_of_a_tree_costs_only_its_names(volume: &Volume) {
    let from = tree::sources().display();
    let logical = tree::bytes_below(tree::sources());
    volume.mount();
    script_within(LIMIT, &volume.mountpoint(), &format!("cp -a {from} first"));
    volume.sync();
    let before = volume.stored();
    script_within(LIMIT, &volume.mountpoint(), &format!("cp -a {from} second"));
    volume.umount();
    let added = volume.stored().all - before.all;
    volume.report("first_copy_stored_bytes", before.all);
    volume.report("second_copy_added_bytes", added);
    assert!(added < logical / 50, "{added} of {logical} bytes");

    volume.wipe_local();
    volume.mount();
    for copy in ["first", "second"] {
        script_within(LIMIT, &volume.mountpoint(), &format!("diff -r {from} {copy}"));
    }
}

fn copies_and_edits_of_a_large_file_send_only_what_is_new(volume: &Volume) {
    volume.mount();
    let (original, copy) = (volume.path("original"), volume.path("copy"));
    let first = write_noise(&original, b"", 1, LARGE);
    volume.sync();

    let before = volume.stored();
    script_within(LIMIT, &volume.mountpoint(), "cp original copy");
    volume.sync();
    let after = volume.stored();
    let journal = after.journal - before.journal;
    volume.report("clone_journal_bytes", journal);
    assert_eq!(after.packs, before.packs, "a copy inside shares all content");
    assert!(journal <= 64 << 10, "{journal} bytes of journal for a copy");

    let sent = volume.sent_bytes();
    let patch = Noise::new(2).take(MIB);
    let file = OpenOptions::new().write(true).open(&copy).expect("open for writing");
    file.write_all_at(&patch, LARGE as u64 / 2).expect("overwrite the middle");
    drop(file);
    volume.sync();
    let edit = volume.sent_bytes() - sent;
    volume.report("overwrite_1m_sent_bytes", edit);
    assert!(edit < 2 * MIB as u64, "{edit} bytes sent for 1 MiB overwritten");
    let patched = digest(&copy);
    assert_ne!(patched, first);
    assert_eq!(digest(&original), first, "the original does not see the edit");

    // The only owner of its blocks from here on, as most files are.
    fs::remove_file(&copy).expect("remove");
    volume.sync();
    let sent = volume.sent_bytes();
    let shifted = write_noise(&original, b"!", 1, LARGE);
    volume.sync();
    let shift = volume.sent_bytes() - sent;
    volume.report("insert_1_byte_sent_bytes", shift);
    assert!(shift < 3 * MIB as u64, "{shift} bytes sent for 1 byte inserted");

    volume.remount_from_the_store_alone();
    assert_eq!(fs::metadata(&original).expect("stat").len(), LARGE as u64 + 1);
    assert_eq!(digest(&original), shifted);
}
