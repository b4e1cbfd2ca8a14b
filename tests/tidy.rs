//! The rules of the house that no compiler knows: which layer may use which, where foreign crates live, how files look.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

use std::path::{Path, PathBuf};

/// What each module of the top level may use besides itself (docs/architecture.md).
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("rt", &["base"]),
    ("telemetry", &["base"]),
    ("store", &["base"]),
    ("backend", &["base", "rt", "telemetry", "store"]),
    ("commit", &["base", "rt", "telemetry", "store"]),
    ("content", &["base", "rt", "telemetry", "store"]),
    ("vfs", &["base", "rt", "telemetry", "store", "commit", "content"]),
    ("maint", &["base", "rt", "telemetry", "store", "commit", "content"]),
    ("fuse", &["base", "rt", "telemetry", "store", "commit", "content", "vfs"]),
    ("cli", &["base", "rt", "telemetry", "store", "backend", "commit", "content", "vfs", "maint", "fuse"]),
    ("main.rs", &["cli"]),
];

/// Where a foreign crate may be named: paths below `src/` that start with one of these.
const HOMES: &[(&str, &[&str])] = &[
    ("fuser", &["fuse/"]),
    ("redb", &["backend/redb/"]),
    ("aws_config", &["backend/s3"]),
    ("aws_sdk_s3", &["backend/s3"]),
    ("fastcdc", &["content/"]),
    ("blake3", &["base/hash.rs"]),
    ("crc32c", &["base/hash.rs"]),
    ("getrandom", &["rt/random.rs"]),
    ("tracing_subscriber", &["telemetry/"]),
    ("clap", &["cli/"]),
    ("anyhow", &["cli/"]),
    ("tokio", &["rt/", "store/", "backend/", "commit/", "content/", "vfs/", "maint/", "fuse/", "cli/"]),
];

/// Production lines in one file at most; beyond that it no longer fits a head.
const FILE_LINES_MAX: usize = 600;

const FORBIDDEN: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut problems = Vec::new();
    for (below, is_product) in
        [("src", true), ("tests", false), ("examples", false), ("mount-helper/src", false)]
    {
        for path in rust_files(&root.join(below)) {
            let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            problems.extend(check_looks(&name, &text));
            if is_product {
                problems.extend(check_arrows(&name, &text));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a source directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn check_looks(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if !text.starts_with("//! ") {
        problems.push(format!("{name}:1: begins without a //! sentence that says what it holds"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if !line.is_ascii() {
            problems.push(format!("{name}:{number}: not ASCII"));
        }
    }
    let code = blank_out_comments_and_strings(text);
    for (number, line) in (1..).zip(code.lines()) {
        for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
            problems.push(format!("{name}:{number}: {word}"));
        }
    }
    let lines = production(&code).lines().count();
    if name.starts_with("src/") && lines > FILE_LINES_MAX {
        problems.push(format!("{name}:{lines}: more than {FILE_LINES_MAX} lines; split it by operation"));
    }
    problems
}

/// The part before the tests, which may use anything.
fn production(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or(code, |tests| &code[..tests])
}

/// Checks one file of `src/`, named from the root of the repository.
fn check_arrows(name: &str, text: &str) -> Vec<String> {
    let below_src = name.strip_prefix("src/").expect("a file of src");
    let module = below_src.split('/').next().expect("split yields one part at least");
    let code = blank_out_comments_and_strings(text);
    let code = production(&code);
    // A sibling `tests.rs` is declared behind #[cfg(test)].
    if module == "lib.rs" || below_src.ends_with("/tests.rs") {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == module) else {
        return vec![format!("{name}:1: no layer has this module: {module}")];
    };
    let mut problems = Vec::new();
    for (at, target) in references(below_src, code) {
        if target != module && !allowed.contains(&target) {
            let line = line_of(code, at);
            problems.push(format!("{name}:{line}: {module} must not use {target}"));
        }
    }
    let own_paths_blanked = blank_out_own_imports(code);
    for (krate, homes) in HOMES {
        if homes.iter().any(|home| below_src.starts_with(home)) {
            continue;
        }
        for at in uses_of_crate(&own_paths_blanked, krate) {
            let line = line_of(code, at);
            problems.push(format!("{name}:{line}: {krate} lives in {} only", homes.join(", ")));
        }
    }
    problems
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Places in `code` that name a module of the top level, with its name.
fn references<'a>(below_src: &str, code: &'a str) -> Vec<(usize, &'a str)> {
    let mut roots: Vec<_> = ["crate::", "gravitonfs::"].map(str::to_owned).into();
    // From `a/b.rs` two steps up lead to the top level, from `a/mod.rs` one does.
    let steps = below_src.split('/').filter(|part| *part != "mod.rs").count();
    roots.push("super::".repeat(steps));
    let mut found = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(&root).filter(|(at, _)| starts_path(code, *at)) {
            let rest = &code[at + root.len()..];
            let names = match rest.strip_prefix('{') {
                Some(group) => group_heads(group),
                None => vec![identifier(rest)],
            };
            let names = names.into_iter().filter(|name| !name.is_empty() && *name != "super");
            found.extend(names.map(|name| (at, name)));
        }
    }
    found
}

/// The first name of each member of a `{...}` import, given what follows the brace.
fn group_heads(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b'}' | b',' if depth == 0 => {
                heads.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if byte == b'}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// True if no longer path or name continues into the one that begins at `at`.
fn starts_path(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.')
}

/// Places where `krate` begins a path or is imported.
fn uses_of_crate(code: &str, krate: &str) -> Vec<usize> {
    let named = code.match_indices(krate).map(|(at, _)| at);
    named
        .filter(|&at| {
            let before = code[..at].trim_end();
            let leading = before.ends_with("::") && starts_path(before, before.len() - 2);
            let starts = starts_path(code, at) || leading;
            let after = &code[at + krate.len()..];
            let imported = (before.ends_with("use") || before.ends_with("extern crate"))
                && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            starts && (after.starts_with("::") || imported)
        })
        .collect()
}

/// Blanks imports from our own modules: one of them may be called like a crate.
fn blank_out_own_imports(code: &str) -> String {
    let mut blanked = code.to_owned();
    for start in ["use crate::", "use super::", "use self::", "use gravitonfs::"] {
        for (at, _) in code.match_indices(start) {
            let end = code[at..].find(';').map_or(code.len(), |len| at + len);
            let blanks: String = code[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            blanked.replace_range(at..end, &blanks);
        }
    }
    blanked
}

/// The text with everything inside comments, strings and character literals replaced by blanks, byte for byte.
fn blank_out_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => find(bytes, at + 2, b"*/") + 2,
            b'"' => end_of_quoted(bytes, at + 1, b'"'),
            b'r' if !follows_name(bytes, at) && raw_string_hashes(&bytes[at + 1..]).is_some() => {
                let hashes = raw_string_hashes(&bytes[at + 1..]).expect("just looked");
                let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
                find(bytes, at + hashes + 2, &close) + close.len()
            }
            // A lifetime has no closing quote behind its first character.
            b'\'' if bytes.get(at + 1) == Some(&b'\\') || bytes.get(at + 2) == Some(&b'\'') => {
                end_of_quoted(bytes, at + 1, b'\'')
            }
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end.min(bytes.len());
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> usize {
    let found = bytes.get(from..).and_then(|rest| rest.windows(needle.len()).position(|part| part == needle));
    found.map_or(bytes.len(), |position| from + position)
}

fn end_of_quoted(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn follows_name(bytes: &[u8], at: usize) -> bool {
    // Of br"..." the r follows a b that belongs to it.
    at.checked_sub(1).is_some_and(|before| {
        let byte = bytes[before];
        (byte.is_ascii_alphanumeric() || byte == b'_') && byte != b'b'
    })
}

/// How many hashes open the raw string whose `r` was just before; None if it is not one.
fn raw_string_hashes(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|byte| **byte == b'#').count();
    (rest.get(hashes) == Some(&b'"')).then_some(hashes)
}

/// The problems of `code` behind a valid first line, so on line 2 and below.
fn arrows_of(name: &str, code: &str) -> Vec<String> {
    check_arrows(name, &format!("//! A sample.\n{code}\n"))
}

#[test]
fn arrows_that_point_up_are_found_in_every_spelling() {
    for (name, code, problem) in [
        ("src/base/x.rs", "use crate::store::Error;", "base must not use store"),
        ("src/store/x.rs", "fn f() -> crate::vfs::Error {}", "store must not use vfs"),
        ("src/content/x.rs", "use crate::{base::hash, commit::Ticket};", "content must not use commit"),
        ("src/content/x.rs", "use crate::{base::{hash, ids}, commit};", "content must not use commit"),
        ("src/commit/x.rs", "use super::super::content::Blob;", "commit must not use content"),
        ("src/commit/mod.rs", "use super::content::Blob;", "commit must not use content"),
        ("src/commit/a/b.rs", "use super::super::super::content;", "commit must not use content"),
        ("src/vfs/x.rs", "use crate::backend::redb::RedbKv;", "vfs must not use backend"),
        ("src/main.rs", "gravitonfs::vfs::start();", "main.rs must not use vfs"),
    ] {
        assert_eq!(arrows_of(name, code), [format!("{name}:2: {problem}")], "{code}");
    }
    assert_eq!(arrows_of("src/extra/x.rs", ""), ["src/extra/x.rs:1: no layer has this module: extra"]);
}

#[test]
fn foreign_crates_are_found_outside_their_homes() {
    for (name, code, krate) in [
        ("src/vfs/x.rs", "use fuser::FileAttr;", "fuser"),
        ("src/vfs/x.rs", "fn f(x: ::fuser::FileAttr) {}", "fuser"),
        ("src/cli/x.rs", "use redb;", "redb"),
        ("src/backend/dir.rs", "let d = redb::Database::create();", "redb"),
        ("src/commit/x.rs", "use {blake3::Hasher, std::fmt};", "blake3"),
        ("src/base/x.rs", "use tokio::sync::Mutex;", "tokio"),
    ] {
        let problems = arrows_of(name, code);
        assert_eq!(problems.len(), 1, "{code}: {problems:?}");
        assert!(problems[0].starts_with(&format!("{name}:2: {krate} lives in ")), "{problems:?}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (name, code) in [
        ("src/store/x.rs", "use crate::base::hash::Hash;\nuse super::kv::Table;\nuse crate::store::Error;"),
        (
            "src/store/x.rs",
            "// use crate::vfs::Error\n/* crate::vfs */ const A: &str = \"crate::vfs::Error\";",
        ),
        (
            "src/store/x.rs",
            "const A: &str = r#\"a \" crate::vfs::x\"#; const B: char = '\"'; fn f<'a>(x: &'a u8) {}",
        ),
        ("src/store/x.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::backend::memory_kv::MemoryKv; }"),
        ("src/store/merge/tests.rs", "use crate::backend::memory_kv::MemoryKv;"),
        ("src/cli/x.rs", "use crate::backend::{local::LocalDirectory, redb::RedbKv};\nuse crate::vfs;"),
        ("src/cli/x.rs", "let kv = backend::redb::RedbKv::open(d);"),
        ("src/backend/redb/mod.rs", "use redb::Database;"),
        ("src/backend/s3/client.rs", "use aws_sdk_s3::Client;"),
        ("src/base/hash.rs", "crc32c::crc32c(data); self::crc32c(data)"),
        ("src/rt/clock.rs", "use super::spawn::Spawner;"),
        ("src/main.rs", "gravitonfs::cli::main();"),
        ("src/lib.rs", "pub mod vfs;"),
    ] {
        assert_eq!(arrows_of(name, code), [""; 0], "{code}");
    }
}

#[test]
fn files_that_look_wrong_are_found() {
    let long = format!("//! Long.\n{}", "fn f() {}\n".repeat(FILE_LINES_MAX));
    for (text, problem) in [
        ("fn f() {}\n", "src/f.rs:1: begins without a //! sentence that says what it holds"),
        ("//! A.\nfn f() {}\n// \u{b7}\n", "src/f.rs:3: not ASCII"),
        ("//! A.\nfn f() { todo!() }\n", "src/f.rs:2: todo!"),
        ("//! A.\n\n#[ignore = \"slow\"]\nfn f() {}\n", "src/f.rs:3: #[ignore"),
        (&long, "src/f.rs:601: more than 600 lines; split it by operation"),
    ] {
        assert_eq!(check_looks("src/f.rs", text), [problem]);
    }
    let tests = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// A test.\n".repeat(FILE_LINES_MAX));
    for text in [&*tests, "//! A.\n// Not a todo!()\nconst A: &str = \"dbg!\";\n"] {
        assert_eq!(check_looks("src/f.rs", text), [""; 0]);
    }
}
