//! `mount.gravitonfs SPEC DIR [-sfnv] [-N namespace] [-o options]`: what mount(8) calls for a line of /etc/fstab with
//! type `gravitonfs`. Starts `gravitonfs mount` and translates its exit code.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Exit codes of mount(8).
const USAGE: u8 = 1;
const SYSTEM_ERROR: u8 = 2;
const MOUNT_FAILURE: u8 = 32;

const PROGRAM: &str = "gravitonfs";

/// What mount(8) asks for.
#[derive(Default, PartialEq, Eq, Debug)]
struct Request {
    volume: OsString,
    directory: OsString,
    options: Vec<OsString>,
    /// `-f`: do everything but mount.
    is_fake: bool,
    is_verbose: bool,
}

fn main() -> ExitCode {
    let Some(request) = parse(std::env::args_os().skip(1)) else {
        eprintln!("usage: mount.gravitonfs SPEC DIR [-sfnv] [-N namespace] [-o options]");
        return ExitCode::from(USAGE);
    };
    if request.is_fake {
        return ExitCode::SUCCESS;
    }
    let program = program();
    let mut command = mount_command(&program, &request);
    if request.is_verbose {
        eprintln!("{command:?}");
    }
    match command.status() {
        Ok(status) => ExitCode::from(translate(status.code())),
        Err(error) => {
            let program = program.display();
            eprintln!(
                "mount.gravitonfs: {program}: {error}; install {PROGRAM} beside this helper or in /usr/bin"
            );
            ExitCode::from(SYSTEM_ERROR)
        }
    }
}

/// Reads the arguments as mount(8) gives them; None if they are not that.
fn parse(arguments: impl Iterator<Item = OsString>) -> Option<Request> {
    let mut request = Request::default();
    let mut places = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            b"-o" => request.options.push(arguments.next()?),
            // The namespace is mount(8)'s business, and it has entered it already.
            b"-N" | b"-t" => drop(arguments.next()?),
            [b'-', flags @ ..] if !flags.is_empty() => {
                for flag in flags {
                    match flag {
                        b'f' => request.is_fake = true,
                        b'v' => request.is_verbose = true,
                        // Tolerate unknown options; write no mtab: both are how we are.
                        b's' | b'n' => {}
                        _ => return None,
                    }
                }
            }
            _ => places.push(argument),
        }
    }
    let [volume, directory] = <[OsString; 2]>::try_from(places).ok()?;
    Some(Request { volume, directory, ..request })
}

fn mount_command(program: &Path, request: &Request) -> Command {
    let mut command = Command::new(program);
    command.arg("mount").arg(&request.volume).arg(&request.directory);
    for options in &request.options {
        command.arg("-o").arg(options);
    }
    // mount(8) takes HOME away and at boot there is none, but the credential chain finds ~/.aws by it alone.
    if let Some(home) = std::env::home_dir() {
        command.env("HOME", home);
    }
    command
}

/// The program beside this helper if there is one, else the one in PATH; mount(8) passes no PATH on, and the C library
/// then looks in /bin and /usr/bin.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(PROGRAM))
}

/// Our documented codes as mount(8)'s.
fn translate(code: Option<i32>) -> u8 {
    match code {
        Some(0) => 0,
        Some(2) => USAGE,
        // Killed, or an error of the program itself.
        None | Some(1) => SYSTEM_ERROR,
        Some(_) => MOUNT_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Request> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn arguments_of_mount_are_understood() {
        let request = parsed("s3://b/p /mnt -sn -v -N /proc/1/ns/mnt -o rw,_netdev").expect("valid");
        assert_eq!(request.volume, "s3://b/p");
        assert_eq!(request.directory, "/mnt");
        assert_eq!(request.options, ["rw,_netdev"]);
        assert!(request.is_verbose && !request.is_fake);
        assert!(parsed("s3://b /mnt -f").is_some_and(|request| request.is_fake));
        for line in ["s3://b", "s3://b /mnt extra", "s3://b /mnt -o", "s3://b /mnt -x"] {
            assert_eq!(parsed(line), None, "{line}");
        }
    }

    #[test]
    fn the_program_gets_the_request_and_a_home_directory() {
        let request = parsed("s3://b/p /mnt -o rw,_netdev -o nofail").expect("valid");
        let command = mount_command(Path::new("gravitonfs"), &request);
        let arguments = ["mount", "s3://b/p", "/mnt", "-o", "rw,_netdev", "-o", "nofail"];
        assert!(command.get_args().eq(arguments));
        assert!(command.get_envs().any(|(name, value)| name == "HOME" && value.is_some()));
    }

    #[test]
    fn exit_codes_become_those_of_mount() {
        let translated = [Some(0), Some(1), Some(2), Some(4), Some(6), None].map(translate);
        assert_eq!(translated, [0, 2, 1, 32, 32, 2]);
    }
}
