//! `VOLUME` as users write it: `s3://bucket[/prefix]`, `file:///dir`, `mem:`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a volume lives. Prints as the canonical form of what was parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Volume {
    /// `prefix` has no slash at either end and may be empty.
    S3 { bucket: String, prefix: String },
    /// An absolute directory, taken verbatim (no %-escapes).
    Dir(PathBuf),
    /// A new empty volume in the memory of each mount.
    Memory,
}

impl Volume {
    /// True if `text` is meant as a volume and not as a path.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        text == "mem:" || text.starts_with("s3:") || text.starts_with("file:") || text.contains("://")
    }
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "mem:" {
            return Ok(Self::Memory);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return parse_s3(rest);
        }
        if let Some(dir) = text.strip_prefix("file://") {
            let is_absolute = dir.starts_with('/');
            return match is_absolute {
                true => Ok(Self::Dir(PathBuf::from(dir))),
                false => Err("a file volume needs an absolute path: file:///dir".to_owned()),
            };
        }
        Err("not a volume: expected s3://bucket[/prefix], file:///dir or mem:".to_owned())
    }
}

fn parse_s3(rest: &str) -> Result<Volume, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if bucket.is_empty() || !bucket.bytes().all(allowed) {
        return Err(format!("not a bucket name: {bucket:?}"));
    }
    let prefix = prefix.trim_matches('/');
    let is_odd = |part: &str| part.is_empty() || part == "." || part == "..";
    if !prefix.is_empty() && prefix.split('/').any(is_odd) {
        return Err(format!("a prefix may not hold empty parts, . or ..: {prefix:?}"));
    }
    Ok(Volume::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Dir(dir) => write!(f, "file://{}", dir.display()),
            Self::Memory => f.write_str("mem:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_print_in_canonical_form() {
        for (text, canonical) in [
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("file:///srv/my volume", "file:///srv/my volume"),
            ("mem:", "mem:"),
        ] {
            let volume: Volume = text.parse().expect("a volume");
            assert_eq!(volume.to_string(), canonical);
        }
    }

    #[test]
    fn what_is_not_a_volume_says_why() {
        for (text, reason) in [
            ("s3://", "bucket"),
            ("s3:///prefix", "bucket"),
            ("s3://b/a//c", "prefix"),
            ("s3://b/../c", "prefix"),
            ("file://relative", "absolute"),
            ("/mnt", "expected"),
            ("gs://bucket", "expected"),
        ] {
            let error = text.parse::<Volume>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_is_not_mistaken_for_a_volume() {
        assert!(!Volume::looks_like("/mnt/data"));
        assert!(!Volume::looks_like("mnt"));
        assert!(Volume::looks_like("gs://bucket"));
    }
}
