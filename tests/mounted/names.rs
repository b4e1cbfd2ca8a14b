//! Names of any bytes, hard and symbolic links, and files that live on without a name.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};

use crate::mount::{Volume, number, on_each_backend};
use crate::tree::{MIB, Noise, assert_same, digest, picture};

on_each_backend! {
    names_are_any_bytes_up_to_255 within 120 s,
    hard_links_are_one_file within 120 s,
    symbolic_links_keep_their_target within 120 s,
    an_open_file_outlives_its_name within 120 s,
    files_removed_at_the_same_time_give_back_their_blocks_once within 120 s,
}

fn names_are_any_bytes_up_to_255(volume: &Volume) {
    volume.mount();
    let root = volume.mountpoint();
    let mut names: Vec<Vec<u8>> = vec![
        b"x".repeat(255),
        "\u{e9}".repeat(127).into_bytes(),
        b" leading and trailing ".to_vec(),
        b"line\nbreak\ttab\\backslash\"quote'".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        b"\xff\xfe not text \x80".to_vec(),
        b"CASE".to_vec(),
        b"case".to_vec(),
        "\u{e9}".into(),
        "e\u{301}".into(),
    ];
    names.extend((1..=255).filter(|byte| *byte != b'/' && *byte != b'.').map(|byte| vec![byte]));
    names.sort();
    names.dedup();
    for name in &names {
        fs::write(root.join(OsStr::from_bytes(name)), name)
            .unwrap_or_else(|error| panic!("{name:?}: {error}"));
    }
    for name in [b"y".repeat(256), b"y".repeat(4000)] {
        let refused = File::create(root.join(OsStr::from_bytes(&name))).expect_err("too long");
        assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
        let refused = fs::metadata(root.join(OsStr::from_bytes(&name))).expect_err("too long");
        assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        let listed = fs::read_dir(&root).expect("read directory");
        let mut found: Vec<_> = listed.map(|entry| entry.expect("entry").file_name().into_vec()).collect();
        found.sort();
        assert_eq!(found, names);
        for name in &names {
            assert_eq!(fs::read(root.join(OsStr::from_bytes(name))).expect("read"), *name);
        }
    }
}

fn hard_links_are_one_file(volume: &Volume) {
    volume.mount();
    fs::create_dir(volume.path("directory")).expect("mkdir");
    let (first, second, third) =
        (volume.path("first"), volume.path("directory/second"), volume.path("third"));
    fs::write(&first, "before").expect("write");
    fs::hard_link(&first, &second).expect("link");
    fs::hard_link(&second, &third).expect("link");
    let number = fs::metadata(&first).expect("stat").ino();
    for path in [&first, &second, &third] {
        let stat = fs::metadata(path).expect("stat");
        assert_eq!((stat.ino(), stat.nlink()), (number, 3));
    }
    OpenOptions::new().append(true).open(&second).expect("open").write_all(b" and after").expect("append");
    assert_eq!(fs::read(&first).expect("read"), b"before and after");
    fs::remove_file(&first).expect("remove");
    assert_eq!(fs::metadata(&third).expect("stat").nlink(), 2);
    let refused = fs::hard_link(&second, &third).expect_err("taken");
    assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
    let refused = fs::hard_link(volume.path("directory"), volume.path("link")).expect_err("a directory");
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    // Renaming one name of a file over another does nothing.
    fs::rename(&second, &third).expect("rename");
    assert!(second.exists() && third.exists());

    let expected = picture(&volume.mountpoint());
    volume.remount_from_the_store_alone();
    assert_same(&expected, &picture(&volume.mountpoint()));
    let numbers = [&second, &third].map(|path| fs::metadata(path).expect("stat").ino());
    assert_eq!(numbers[0], numbers[1], "still one file");
}

fn symbolic_links_keep_their_target(volume: &Volume) {
    volume.mount();
    let long = "t/".repeat(2000) + "end";
    let targets = ["relative", "/absolute/target", "../up", " ", "no\nwhere", long.as_str()];
    for (index, target) in targets.iter().enumerate() {
        symlink(target, volume.path(&format!("link-{index}"))).expect("symlink");
    }
    fs::write(volume.path("relative"), "through").expect("write");
    symlink("loop", volume.path("loop")).expect("symlink");
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        for (index, target) in targets.iter().enumerate() {
            let path = volume.path(&format!("link-{index}"));
            assert_eq!(fs::read_link(&path).expect("readlink").as_os_str(), *target);
            assert_eq!(fs::symlink_metadata(&path).expect("lstat").len(), target.len() as u64);
        }
        assert_eq!(fs::read(volume.path("link-0")).expect("follow"), b"through");
        let looped = fs::read(volume.path("loop")).expect_err("a loop");
        assert_eq!(looped.raw_os_error(), Some(libc::ELOOP));
    }
}

fn an_open_file_outlives_its_name(volume: &Volume) {
    volume.mount();
    let path = volume.path("doomed");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("create");
    let content = Noise::new(11).take(3 * MIB);
    file.write_all(&content[..MIB]).expect("write");
    volume.sync();
    fs::remove_file(&path).expect("remove");
    assert!(!path.exists());
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    file.write_all(&content[MIB..]).expect("write without a name");
    volume.sync();
    // Another file of the same name is another file.
    fs::write(&path, "successor").expect("write");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut found = Vec::new();
    file.read_to_end(&mut found).expect("read without a name");
    assert!(found == content);
    drop(file);

    // Replaced by rename, it lives on as well.
    let mut reader = File::open(&path).expect("open");
    fs::write(volume.path("new"), "replacement").expect("write");
    fs::rename(volume.path("new"), &path).expect("rename");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read the replaced file");
    assert_eq!(text, "successor");
    drop(reader);
    volume.remount_from_the_store_alone();
    assert_eq!(fs::read(&path).expect("read"), b"replacement");
    assert_eq!(fs::read_dir(volume.mountpoint()).expect("list").count(), 1);
}

/// Four equal files were removed one right after the other; each gave back blocks of the others too, so that the count of
/// blocks in use fell below zero, or below the truth. Each block is given back once now, and what is named keeps it.
fn files_removed_at_the_same_time_give_back_their_blocks_once(volume: &Volume) {
    /// Pieces apart from each other, so that giving them back takes many steps.
    const PIECES: usize = 600;
    const PIECE: usize = 4096;
    volume.mount();
    let write = |name: &str| {
        let file = File::create(volume.path(name)).expect("create");
        let mut noise = Noise::new(13);
        for piece in 0..PIECES {
            file.write_all_at(&noise.take(PIECE), (2 * piece * PIECE) as u64).expect("write");
        }
    };
    write("kept");
    let kept = digest(&volume.path("kept"));
    for _ in 0..4 {
        let names: Vec<_> = (0..4).map(|number| format!("file-{number}")).collect();
        names.iter().for_each(|name| write(name));
        volume.sync();
        std::thread::scope(|scope| {
            for path in names.iter().map(|name| volume.path(name)) {
                scope.spawn(move || fs::remove_file(path).expect("remove"));
            }
        });
    }
    volume.sync();
    // The kernel tells of the last close when it likes, and only then a removed file can go.
    while number(&volume.status(), "files") != 1 {
        std::thread::yield_now();
    }
    // The log of a daemon that counted wrongly says so.
    volume.remount_from_the_store_alone();
    assert_eq!(digest(&volume.path("kept")), kept);
}
