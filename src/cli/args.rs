//! The command line, as clap reads it, and its manual.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
VOLUME is s3://bucket[/prefix], file:///dir, or mem: (a new empty volume for each mount).

Exit codes: 0 done, 1 internal error, 2 usage, 3 not found or not formatted, 4 busy or already mounted,
5 denied, 6 unreachable, 7 corrupt (or a check found something), 8 format too new, 9 fenced or held by another host, 10 drain timed out
(the data are safe on this machine). The last line on stderr says: gravitonfs: THING: CAUSE; WHAT TO DO.

Environment: GRAVITONFS_STATE_DIR (default /var/lib/gravitonfs for root, else $XDG_STATE_HOME/gravitonfs) holds what
must survive; GRAVITONFS_CACHE_DIR (default /var/cache/gravitonfs for root, else $XDG_CACHE_HOME/gravitonfs) holds what
may be deleted while unmounted; GRAVITONFS_LOG filters the log. S3 credentials come from the usual AWS configuration.";

const MOUNT_HELP: &str = "\
Options (-o, repeatable, anywhere):
  durability=local|remote  fsync returns when the data are on this disk, or in the store [default: local]
  ro, rw                   read-only, read-write
  allow_other              let other users in (always so for root)
  uid=N, gid=N, umask=OOO  owner, group and hidden permission bits shown for every file
  cache-size=SIZE          disk for cached parts of packs
  memory=SIZE              memory for buffers and caches
  spill-size=SIZE          disk for data that is not in the store yet
  endpoint=URL, region=NAME, profile=NAME, path-style[=BOOL], allow-http[=BOOL]
                           how to reach the S3 server
  takeover                 mount although another host has not released the volume
Options of mount(8) such as nosuid, nodev, noexec, noatime, _netdev, nofail and x-* are accepted.";

/// Mount an object store as an ordinary POSIX directory: deduplicated, packed, verified.
#[derive(Parser, Debug)]
#[command(name = "gravitonfs", version, after_long_help = AFTER_HELP, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Prepare a new volume.
    Format(Format),
    /// Mount a volume on a directory.
    #[command(after_help = MOUNT_HELP)]
    Mount(Mount),
    /// Unmount, after everything is in the store.
    Umount(Umount),
    /// Wait until everything written so far is in the store.
    Sync(Sync),
    /// Report the state of a volume or mount.
    Status(Status),
    /// Find out whether a volume is whole; changes nothing.
    Check(Check),
    /// Store and fetch whole contents by key, without mounting.
    Blob(Blob),
}

#[derive(Args, Debug)]
pub struct Format {
    /// Where to make the volume; must be empty.
    pub volume: String,
    #[command(flatten)]
    pub shape: Shape,
    /// How to reach the store: endpoint=URL, region=NAME, and so on
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// What is fixed for the life of a volume.
#[derive(Args, Debug, Clone, Default)]
pub struct Shape {
    /// Average length of a block, a power of two such as 256K.
    #[arg(long, value_name = "AVG", value_parser = parse_size)]
    pub block_size: Option<u64>,
    /// Blocks in packs, or one object each.
    #[arg(long, value_enum, default_value_t)]
    pub layout: Layout,
    /// How blocks are compressed.
    #[arg(long, value_enum, default_value_t)]
    pub compression: Compression,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    #[default]
    Framed,
    Single,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    #[default]
    Zstd,
    None,
}

#[derive(Args, Debug)]
pub struct Mount {
    pub volume: String,
    pub mountpoint: PathBuf,
    /// Make the volume and the mountpoint if they do not exist.
    #[arg(long)]
    pub create: bool,
    /// Mount options; see below.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay attached to the terminal instead of becoming a daemon.
    #[arg(long, short = 'f')]
    pub foreground: bool,
}

#[derive(Args, Debug)]
pub struct Umount {
    pub mountpoint: PathBuf,
    /// Give up after this many seconds; what is not in the store then stays safe on this machine.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

#[derive(Args, Debug)]
pub struct Sync {
    pub mountpoint: PathBuf,
}

#[derive(Args, Debug)]
pub struct Status {
    /// A volume, or the mountpoint of one.
    #[arg(value_name = "VOLUME|MOUNTPOINT")]
    pub target: PathBuf,
    /// One JSON object, for scripts.
    #[arg(long)]
    pub json: bool,
    /// How to reach the store of an unmounted volume.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Check {
    /// A volume, or the mountpoint of one, which goes on serving.
    #[arg(value_name = "VOLUME|MOUNTPOINT")]
    pub target: PathBuf,
    /// Fetch and hash every stored byte too.
    #[arg(long)]
    pub data: bool,
    /// One JSON object, for scripts.
    #[arg(long)]
    pub json: bool,
    /// How to reach the store of an unmounted volume.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Blob {
    pub volume: String,
    #[command(subcommand)]
    pub action: BlobAction,
    /// How to reach the store.
    #[arg(short = 'o', value_name = "OPTIONS", global = true)]
    pub options: Vec<String>,
}

#[derive(Subcommand, Debug, Clone)]
pub enum BlobAction {
    /// Store files; prints their keys.
    Put {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Write a blob to standard output.
    Get { key: String },
    /// Report a blob as JSON.
    Stat { key: String },
    /// Forget a blob.
    Rm { key: String },
    /// List all blobs, one JSON object a line.
    Ls,
}

fn parse_size(text: &str) -> Result<u64, String> {
    crate::base::size::parse_bytes(text).ok_or_else(|| "expected a size such as 256K or 1M".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mount_options_may_stand_anywhere() {
        for line in [
            "gravitonfs mount -o ro -o uid=1 file:///v /mnt --create",
            "gravitonfs mount file:///v -o ro /mnt --create -ouid=1",
            "gravitonfs mount --create file:///v /mnt -o ro -o uid=1",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            let Command::Mount(mount) = cli.command else { panic!("{line}") };
            assert_eq!((mount.volume.as_str(), mount.create), ("file:///v", true), "{line}");
            assert_eq!(mount.options, ["ro", "uid=1"], "{line}");
        }
    }
}
