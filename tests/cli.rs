//! The commands as scripts see them, as far as that needs no mount: exit codes, last lines on stderr, output.
//! `mounted` has the rest.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A place for a volume and its local files.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temporary directory") }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn volume(&self) -> String {
        format!("file://{}", self.path("store"))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gravitonfs"));
        command.args(words).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("GRAVITONFS_STATE_DIR", self.path("state"));
        command.env("GRAVITONFS_CACHE_DIR", self.path("cache"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program starts")
    }

    /// Standard output of a command that succeeds.
    fn succeed(&self, words: &[&str]) -> Vec<u8> {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn lines(&self, words: &[&str]) -> Vec<String> {
        String::from_utf8(self.succeed(words)).expect("text").lines().map(str::to_owned).collect()
    }

    /// Asserts the code, the form of the last line on stderr, and a word in it.
    fn refuse(&self, words: &[&str], code: i32, says: &str) {
        let output = self.run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
        let line = stderr.lines().last().unwrap_or_default();
        let is_formed =
            line.starts_with("gravitonfs: ") && line.matches(": ").count() >= 2 && line.contains("; ");
        assert!(is_formed, "{words:?}: {line}");
        assert!(line.contains(says), "{words:?}: {says:?} is missing in {line:?}");
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.dir.path().join(name), content).expect("write");
        self.path(name)
    }
}

#[test]
fn the_manual_names_every_command_and_option() {
    let place = Place::new();
    let help = String::from_utf8(place.succeed(&["--help"])).expect("text");
    for word in
        ["format", "mount", "umount", "sync", "status", "check", "blob", "Exit codes", "GRAVITONFS_STATE_DIR"]
    {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
    let help = String::from_utf8(place.succeed(&["mount", "--help"])).expect("text");
    for word in
        ["durability=local|remote", "allow_other", "cache-size", "spill-size", "takeover", "--foreground"]
    {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
}

#[test]
fn what_was_mistyped_is_a_usage_error_that_says_what_was_meant() {
    let place = Place::new();
    let volume = place.volume();
    for (words, says) in [
        (&["mnt"][..], "mnt"),
        (&["mount", &volume], "MOUNTPOINT"),
        (&["mount", &volume, "/mnt", "--creat"], "--create"),
        (&["mount", "/no/volume", "/mnt"], "s3://"),
        (&["mount", &volume, "/mnt", "-o", "cach-size=1G"], "cache-size"),
        (&["mount", &volume, "/mnt", "-o", "cache-size=lots"], "cache-size"),
        (&["format", "mem:"], "mem:"),
        (&["format", &volume, "--block-size", "3"], "--block-size"),
        (&["format", &volume, "--layout", "striped"], "striped"),
        (&["status", "gs://bucket"], "gs://bucket"),
        (&["blob", "/no/volume", "ls"], "s3://"),
    ] {
        place.refuse(words, 2, says);
    }
    assert!(!Path::new(&place.path("store")).exists(), "nothing was made");
}

#[test]
fn a_relative_state_directory_is_refused() {
    let place = Place::new();
    let mut command = place.command(&["status", "/mnt"]);
    let output = command.env("GRAVITONFS_STATE_DIR", "here").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("GRAVITONFS_STATE_DIR"));
}

#[test]
fn a_location_is_formatted_once_and_only_if_it_is_empty() {
    let place = Place::new();
    let volume = place.volume();
    place.refuse(&["status", &volume], 3, "store");
    let said = place.lines(&["format", &volume, "--block-size", "64K", "--compression", "none"]);
    assert!(said.iter().any(|line| line.contains(&volume)), "{said:?}");
    place.refuse(&["format", &volume], 4, "already formatted");

    std::fs::create_dir(place.path("occupied")).expect("mkdir");
    place.write("occupied/letter", b"mine");
    place.refuse(&["format", &format!("file://{}", place.path("occupied"))], 4, "letter");
    assert_eq!(std::fs::read(place.path("occupied/letter")).expect("still there"), b"mine");
}

#[test]
fn an_unmounted_volume_reports_itself_with_and_without_local_state() {
    let place = Place::new();
    let volume = place.volume();
    place.succeed(&["format", &volume]);
    let file = place.write("file", &[7; 100_000]);
    place.succeed(&["blob", &volume, "put", &file]);
    for is_wiped in [false, true] {
        if is_wiped {
            std::fs::remove_dir_all(place.path("state")).expect("wipe");
            std::fs::remove_dir_all(place.path("cache")).expect("wipe");
        }
        let json = place.succeed(&["status", &volume, "--json"]);
        let status: Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!((&status["schema"], &status["state"]), (&1.into(), &"unmounted".into()), "{status}");
        assert_eq!((&status["files"], &status["logical_bytes"]), (&1.into(), &100_000.into()), "{status}");
        assert_eq!(status["pending_upload_bytes"], 0, "{status}");
        assert_eq!(status["mountpoint"], Value::Null, "{status}");
    }
    assert!(!Path::new(&place.path("state")).exists(), "asking for status leaves nothing behind");
}

#[test]
fn blobs_are_stored_by_their_hash_and_come_back() {
    let place = Place::new();
    let volume = place.volume();
    place.succeed(&["format", &volume]);
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let (large, empty) = (place.write("large", &content), place.write("empty", b""));

    let keys = place.lines(&["blob", &volume, "put", &large, &empty]);
    assert_eq!(
        place.lines(&["blob", &volume, "put", &large, &empty]),
        keys,
        "the same content has the same key"
    );
    let [large, empty] = &keys[..] else { panic!("one key per file: {keys:?}") };
    assert_eq!(place.succeed(&["blob", &volume, "get", large]), content);
    assert_eq!(place.succeed(&["blob", &volume, "get", empty]), b"");

    let stat: Value =
        serde_json::from_slice(&place.succeed(&["blob", &volume, "stat", large])).expect("JSON");
    assert_eq!((stat["key"].as_str(), &stat["bytes"]), (Some(large.as_str()), &4_000_000.into()));
    assert_eq!(place.lines(&["blob", &volume, "ls"]).len(), 2);

    place.succeed(&["blob", &volume, "rm", large]);
    for action in ["get", "stat", "rm"] {
        place.refuse(&["blob", &volume, action, large], 3, "no such blob");
    }
    assert_eq!(place.lines(&["blob", &volume, "ls"]).len(), 1);
}

#[test]
fn a_closed_pipe_does_not_end_a_blob_in_a_panic() {
    let place = Place::new();
    let volume = place.volume();
    place.succeed(&["format", &volume]);
    let file = place.write("file", &[1; 3_000_000]);
    let keys = place.lines(&["blob", &volume, "put", &file]);
    let key = keys.first().expect("a key");
    let mut command = place.command(&["blob", &volume, "get", key]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.lines().last().is_some_and(|line| line.starts_with("gravitonfs: output: write")),
        "{stderr}"
    );
}

#[test]
fn commands_for_mounts_refuse_what_is_not_mounted() {
    let place = Place::new();
    let directory = place.dir.path().display().to_string();
    for command in ["umount", "sync", "status"] {
        place.refuse(&[command, &directory], 3, "no volume is mounted here");
    }
}
