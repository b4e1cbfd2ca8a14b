//! Mount options: `-o name,name=value` of our own, and those of mount(8) that any filesystem is given.

use nix::mount::MsFlags;

use super::exit::{Code, Failure, Result};
use super::nearest::nearest;
use crate::base::size::parse_bytes;

/// When fsync(2) may return.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// The data are on this machine's disk.
    #[default]
    Local,
    /// The data are in the object store.
    Remote,
}

impl Durability {
    /// As the option and `status` spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// How to reach an S3 server; what is not given comes from the usual AWS configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreOptions {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    /// Bucket in the path instead of the host name; None decides by the endpoint.
    pub path_style: Option<bool>,
    /// Permits a plain `http://` endpoint beyond loopback.
    pub allow_http: bool,
}

/// Everything `-o` can say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    pub durability: Durability,
    pub read_only: bool,
    pub allow_other: bool,
    /// Owner and group shown for every file instead of the stored ones.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permission bits hidden from every file.
    pub umask: u32,
    /// Limits in bytes; None takes the default.
    pub cache_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub spill_bytes: Option<u64>,
    pub store: StoreOptions,
    /// Take the volume although another host has not released it.
    pub takeover: bool,
    /// Flags for mount(2) beside `ro`; only what was asked for.
    pub flags: MsFlags,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            read_only: false,
            allow_other: false,
            uid: None,
            gid: None,
            umask: 0,
            cache_bytes: None,
            memory_bytes: None,
            spill_bytes: None,
            store: StoreOptions::default(),
            takeover: false,
            flags: MsFlags::empty(),
        }
    }
}

/// Our own options, for suggestions and the manual.
const OWN: [&str; 17] = [
    "durability",
    "ro",
    "rw",
    "allow_other",
    "uid",
    "gid",
    "umask",
    "cache-size",
    "memory",
    "spill-size",
    "endpoint",
    "region",
    "profile",
    "path-style",
    "allow-http",
    "takeover",
    "noatime",
];

/// Options that mean something to mount(8), its helpers or systemd, or nothing at all to a FUSE mount like ours.
const IGNORED: [&str; 30] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "atime",
    "relatime",
    "norelatime",
    "diratime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "loud",
    "silent",
    "default_permissions",
    "nonempty",
    "big_writes",
    "exec",
    "suid",
    "dev",
    "comment",
];

/// Options of mount(8) that become flags of mount(2).
const FLAGS: [(&str, MsFlags); 8] = [
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
];

impl MountOptions {
    /// Reads the values of all `-o` arguments, each a comma-separated list; a later option overrides an earlier one.
    ///
    /// # Errors
    /// `Usage` naming the option, and for an unknown one the nearest that exists.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<Self> {
        let mut options = Self::default();
        for option in lists.iter().flat_map(|list| list.as_ref().split(',')).map(str::trim) {
            if !option.is_empty() {
                options.apply(option)?;
            }
        }
        Ok(options)
    }

    fn apply(&mut self, option: &str) -> Result<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let given = Given { name, value };
        // Both spellings are in use among filesystems: allow_other, cache-size.
        match name.replace('_', "-").as_str() {
            "durability" => self.durability = given.durability()?,
            "ro" => self.read_only = given.no_value(true)?,
            "rw" => self.read_only = given.no_value(false)?,
            "allow-other" => self.allow_other = given.no_value(true)?,
            "uid" => self.uid = Some(given.id()?),
            "gid" => self.gid = Some(given.id()?),
            "umask" => self.umask = given.octal()?,
            "cache-size" => self.cache_bytes = Some(given.bytes()?),
            "memory" => self.memory_bytes = Some(given.bytes()?),
            "spill-size" => self.spill_bytes = Some(given.bytes()?),
            "endpoint" => self.store.endpoint = Some(given.text()?),
            "region" => self.store.region = Some(given.text()?),
            "profile" => self.store.profile = Some(given.text()?),
            "path-style" => self.store.path_style = Some(given.switch()?),
            "allow-http" => self.store.allow_http = given.switch()?,
            "takeover" => self.takeover = given.switch()?,
            _ => self.apply_generic(name)?,
        }
        Ok(())
    }

    fn apply_generic(&mut self, name: &str) -> Result<()> {
        // fstab's comments and systemd's options; anything may follow.
        if name.starts_with("x-") || name.starts_with("X-") {
            return Ok(());
        }
        if let Some((_, flag)) = FLAGS.iter().find(|(known, _)| *known == name) {
            self.flags |= *flag;
            return Ok(());
        }
        if IGNORED.contains(&name) {
            // What the last of `nosuid,suid` asks for holds.
            let undone = format!("no{name}");
            if let Some((_, flag)) = FLAGS.iter().find(|(known, _)| *known == undone) {
                self.flags -= *flag;
            }
            return Ok(());
        }
        let known = OWN.into_iter().chain(IGNORED).chain(FLAGS.map(|(name, _)| name));
        let advice = match nearest(name, known) {
            Some(other) => format!("did you mean {other}?"),
            None => format!("the options are {}", OWN.join(", ")),
        };
        Err(Failure::new(Code::Usage, format_args!("-o {name}"), "unknown option", advice))
    }
}

/// One option as written.
struct Given<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl Given<'_> {
    fn no_value(&self, meaning: bool) -> Result<bool> {
        match self.value {
            None => Ok(meaning),
            Some(_) => Err(self.refused("takes no value")),
        }
    }

    fn switch(&self) -> Result<bool> {
        match self.value {
            None | Some("true" | "yes" | "1") => Ok(true),
            Some("false" | "no" | "0") => Ok(false),
            Some(_) => Err(self.refused("is true or false")),
        }
    }

    fn text(&self) -> Result<String> {
        let value = self.value.filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| self.refused("needs a value"))
    }

    fn id(&self) -> Result<u32> {
        let id = self.text()?.parse().ok().filter(|&id| id != u32::MAX);
        id.ok_or_else(|| self.refused("is a number"))
    }

    fn octal(&self) -> Result<u32> {
        let bits = u32::from_str_radix(&self.text()?, 8).ok().filter(|&bits| bits <= 0o777);
        bits.ok_or_else(|| self.refused("is an octal number up to 777"))
    }

    fn bytes(&self) -> Result<u64> {
        let bytes = parse_bytes(&self.text()?).filter(|&bytes| bytes > 0);
        bytes.ok_or_else(|| self.refused("is a size such as 512M or 10G"))
    }

    fn durability(&self) -> Result<Durability> {
        match self.text()?.as_str() {
            "local" => Ok(Durability::Local),
            "remote" => Ok(Durability::Remote),
            _ => Err(self.refused("is local or remote")),
        }
    }

    fn refused(&self, rule: &str) -> Failure {
        let given = self.value.map_or_else(|| "no value".to_owned(), |value| format!("{value:?}"));
        Failure::usage(format_args!("-o {}", self.name), format_args!("{rule}, got {given}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lists: &[&str]) -> Result<MountOptions> {
        MountOptions::parse(lists)
    }

    #[test]
    fn values_are_typed_and_later_ones_win() {
        let options = parse(&[
            "durability=remote,uid=1000,gid=100,umask=022",
            "cache-size=10G,memory=256M,ro,rw,allow_other,spill_size=1G",
            "endpoint=http://127.0.0.1:9000,region=eu-west-1,path-style,allow-http,takeover",
        ])
        .expect("valid options");
        assert_eq!(options.durability, Durability::Remote);
        assert!(!options.read_only && options.allow_other && options.takeover);
        assert_eq!((options.uid, options.gid, options.umask), (Some(1000), Some(100), 0o22));
        assert_eq!(options.cache_bytes, Some(10 << 30));
        assert_eq!((options.memory_bytes, options.spill_bytes), (Some(256 << 20), Some(1 << 30)));
        assert_eq!(options.store.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!((options.store.path_style, options.store.allow_http), (Some(true), true));
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        for (typo, meant) in
            [("durabilty=local", "durability"), ("cache_sise=1G", "cache-size"), ("nosiud", "nosuid")]
        {
            let failure = parse(&[typo]).expect_err(typo);
            assert_eq!(failure.code, Code::Usage);
            assert!(failure.advice.contains(meant), "{typo}: {failure}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for option in [
            "durability=cloud",
            "durability",
            "uid=root",
            "umask=888",
            "umask=7777",
            "cache-size=big",
            "memory=0",
            "ro=1",
            "path-style=maybe",
            "endpoint=",
        ] {
            let failure = parse(&[option]).expect_err(option);
            assert_eq!(failure.code, Code::Usage, "{option}");
            assert!(failure.thing.contains(option.split('=').next().expect("a name")), "{option}: {failure}");
        }
    }

    #[test]
    fn what_fstab_adds_is_accepted() {
        let options = parse(&["defaults,_netdev,nofail,noauto,x-systemd.automount,user,X-mount.mkdir", ""])
            .expect("valid options");
        assert_eq!(options, MountOptions::default());
    }

    #[test]
    fn the_last_of_opposite_flags_holds() {
        let options = parse(&["nosuid,nodev,noexec,suid"]).expect("valid options");
        assert_eq!(options.flags, MsFlags::MS_NODEV | MsFlags::MS_NOEXEC);
    }
}
