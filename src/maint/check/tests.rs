//! Plants each kind of damage in a small volume, and expects that to be found and nothing else.

use bytes::Bytes;

use super::*;
use crate::backend::memory_kv::MemoryKv;
use crate::backend::memory_object::MemoryObjectStore;
use crate::base::attr::FileKind;
use crate::base::hash::Hash;
use crate::base::ids::{BatchNo, Epoch, Generation, Ino, SegmentId, Seq, WriterId};
use crate::base::name::Name;
use crate::base::range::ByteRange;
use crate::base::time::Timestamp;
use crate::commit::checkpoint_format::{PartRef, PartRows, Root};
use crate::commit::record::{RecordHeader, encode_record};
use crate::commit::system::{Head, Holder, JournalRow, SYSTEM};
use crate::content::extent_map::ExtentMap;
use crate::content::frame::{Compression, FrameEncoder};
use crate::content::pack::PackEntry;
use crate::content::pack_writer;
use crate::content::seal::{Seal, Sealed};
use crate::rt::TokioRuntime;
use crate::store::block::{BlockLocation, BlockTicket, Receipt, UploadTicket};
use crate::store::keys;
use crate::store::kv::{Durability, KeyValueStore as _, Table, Write};
use crate::store::object::ObjectKey;
use crate::store::schema::inode::{ContentForm, DentryRow, InodeRow};
use crate::store::schema::manifest::{BlockSlice, ManifestRow, Segment};
use crate::store::schema::pack::{BlockRow, PackRow};
use crate::store::schema::*;

const VOLUME: VolumeId = VolumeId(1);
const WRITER: WriterId = WriterId(2);
const PACK_ID: PackId = PackId { writer: WRITER, number: 3 };
const STAGED_ID: PackId = PackId { writer: WRITER, number: 4 };
const NOWHERE: PackId = PackId { writer: WRITER, number: 5 };
const NONE: Ino = Ino(99);

const DIR: Ino = Ino(2);
const FILE: Ino = Ino(3);
const SMALL: Ino = Ino(4);
const LINK: Ino = Ino(5);
const GONE: Ino = Ino(6);
const KEYED: Ino = Ino(7);

struct Sample {
    kv: MemoryKv,
    objects: Arc<MemoryObjectStore>,
    staged: StagedFiles,
    runtime: TokioRuntime,
    pack: (Vec<u8>, Vec<PackEntry>),
}

fn inode(kind: FileKind, nlink: u32, size: u64, allocated: u64, form: ContentForm) -> InodeRow {
    let now = Timestamp { secs: 1, nanos: 2 };
    let parent = Ino(u64::from(kind == FileKind::Directory));
    let (uid, gid, rdev, generation) = (0, 0, 0, Generation(0));
    InodeRow {
        kind,
        mode: 0o644,
        nlink,
        uid,
        gid,
        rdev,
        size,
        allocated,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        form,
        generation,
        parent,
    }
}

fn root_row() -> InodeRow {
    inode(FileKind::Directory, 3, 4096, 4096, ContentForm::Empty)
}

fn dir_row() -> InodeRow {
    inode(FileKind::Directory, 2, 4096, 4096, ContentForm::Empty)
}

fn file_row() -> InodeRow {
    inode(FileKind::Regular, 2, 50, 50, ContentForm::Manifest)
}

fn small_row() -> InodeRow {
    inode(FileKind::Regular, 1, 5, 5, ContentForm::Inline)
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("valid")
}

fn cookie(text: &str) -> Cookie {
    Cookie::first_of(&name(text))
}

fn blocks() -> [Bytes; 3] {
    [
        Bytes::from_static(b"0123456789"),
        Bytes::from_static(b"abcdefghijabcdefghij"),
        Bytes::from_static(b"unused"),
    ]
}

fn id(index: usize) -> BlockId {
    BlockId::of(&blocks()[index])
}

fn make_pack() -> (Vec<u8>, Vec<PackEntry>, Receipt) {
    let (mut bytes, mut entries) = (Vec::new(), Vec::new());
    let mut encoder = FrameEncoder::new(Compression::None);
    for block in blocks() {
        let offset = u32::try_from(bytes.len()).expect("small");
        let frame = encoder.encode(BlockId::of(&block), &block);
        frame.write_to(|part| bytes.extend_from_slice(part));
        entries.push(PackEntry::new(&frame.header, offset));
    }
    let tail = pack_writer::tail(PACK_ID, &entries);
    bytes.extend_from_slice(&tail.bytes);
    (bytes, entries, tail.receipt)
}

fn seal(number: u64, pack: PackId) -> Vec<u8> {
    let upload = UploadTicket::fulfilled(Receipt::UNKNOWN);
    let location = BlockLocation::Frame { pack, offset: 0, len: 70 };
    let ticket = BlockTicket { id: id(0), location, upload };
    let mut extents = ExtentMap::default();
    extents.insert(ByteRange::new(0, 10), Sealed::Block { ticket, skip: 0 });
    Seal { number, extents, cut: None, size: 50, touched: Timestamp { secs: 1, nanos: 2 } }.encode()
}

fn holder(epoch: u64) -> Holder {
    let since = Timestamp { secs: 1, nanos: 2 };
    let text = String::new;
    let epoch = Epoch(epoch);
    Holder { epoch, host: text(), boot_id: text(), writer: WRITER, tier: text(), since, released: false }
}

impl Sample {
    fn new() -> Self {
        let (bytes, entries, receipt) = make_pack();
        let sample = Self {
            kv: MemoryKv::new(),
            objects: Arc::new(MemoryObjectStore::new()),
            staged: StagedFiles { packs: [(STAGED_ID, 70)].into(), ..StagedFiles::default() },
            runtime: TokioRuntime::new(1, 1).expect("threads for a test"),
            pack: (bytes.clone(), entries),
        };
        sample.replace(&keys::pack(PACK_ID), bytes);
        sample.put_tree();
        sample.put_content(receipt);
        sample.put_journal();
        sample
    }

    fn put(&self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let write = Write { table, key: key.into(), value: Some(value.into()) };
        self.kv.commit(&[write], Durability::Immediate).expect("memory");
    }

    fn delete(&self, table: Table, key: impl Into<Vec<u8>>) {
        let write = Write { table, key: key.into(), value: None };
        self.kv.commit(&[write], Durability::Immediate).expect("memory");
    }

    fn put_inode(&self, ino: Ino, row: &InodeRow) {
        self.put(INODE, ino_key(ino), row.encode());
    }

    fn put_entry(&self, parent: Ino, at: Cookie, text: &str, ino: Ino, kind: FileKind) {
        self.put(DENTRY, at.key(parent), DentryRow { ino, kind, name: name(text) }.encode());
    }

    fn put_counter(&self, counter: Counter, value: i64) {
        self.put(COUNTER, counter.key(), value.to_le_bytes());
    }

    fn put_tree(&self) {
        self.put_inode(Ino::ROOT, &root_row());
        self.put_inode(DIR, &dir_row());
        self.put_inode(FILE, &file_row());
        self.put_inode(SMALL, &small_row());
        self.put_inode(LINK, &inode(FileKind::Symlink, 1, 6, 0, ContentForm::Inline));
        self.put_inode(GONE, &inode(FileKind::Regular, 0, 0, 0, ContentForm::Empty));
        self.put_inode(KEYED, &inode(FileKind::Regular, 1, 0, 0, ContentForm::Empty));
        self.put_entry(Ino::ROOT, cookie("d"), "d", DIR, FileKind::Directory);
        self.put_entry(Ino::ROOT, cookie("f"), "f", FILE, FileKind::Regular);
        self.put_entry(DIR, cookie("g"), "g", FILE, FileKind::Regular);
        self.put_entry(DIR, cookie("i"), "i", SMALL, FileKind::Regular);
        self.put_entry(DIR, cookie("s"), "s", LINK, FileKind::Symlink);
        self.put(INLINE, ino_key(SMALL), "hello");
        self.put(INLINE, ino_key(LINK), "target");
        self.put(XATTR, xattr_key(SMALL, b"user.x"), "value");
        self.put(ORPHAN, ino_key(GONE), "");
        self.put(BLOB, "k", ino_key(KEYED));
        for (counter, value) in [
            (Counter::Inodes, 7),
            (Counter::Files, 4),
            (Counter::AllocatedBytes, 2 * 4096 + 50 + 5),
            (Counter::LogicalBytes, 55),
            (Counter::StoredBytes, 70 + 80),
            (Counter::NextIno, 4096),
            (Counter::NextSegment, 4096),
        ] {
            self.put_counter(counter, value);
        }
    }

    fn put_content(&self, receipt: Receipt) {
        let slice = |index: usize| BlockSlice { block: id(index), skip: 0, len: id(index).len };
        let window = |len, segment| ManifestRow { len, segment: SegmentId(segment), skip: 0 }.encode();
        self.put(MANIFEST, pair_key(FILE.0, 30), window(30, 1));
        self.put(MANIFEST, pair_key(FILE.0, 50), window(20, 0));
        self.put(SEGMENT, segment_key(SegmentId(1)), Segment::new(vec![slice(0), slice(1)]).encode());
        self.put(SEGMENT_REFS, segment_key(SegmentId(1)), 1_u32.to_le_bytes());
        self.put(SEGMENT, segment_key(SegmentId(2)), Segment::new(vec![slice(0)]).encode());
        self.put(DEAD_SEGMENT, segment_key(SegmentId(2)), "");
        for (index, refs) in [2, 1, 0].into_iter().enumerate() {
            self.put_block(index, refs);
        }
        self.put(PACK, pack_key(PACK_ID), PackRow { live_bytes: 150, receipt: Some(receipt) }.encode());
        self.put(OVERLAY, pair_key(FILE.0, 1), seal(1, STAGED_ID));
    }

    fn put_block(&self, index: usize, refs: u32) {
        let location = self.pack.1[index].location(PACK_ID);
        self.put(BLOCK, id(index).to_key(), BlockRow { location, refs }.encode());
    }

    /// Three records, a checkpoint behind the second, and the place where this machine is.
    fn put_journal(&self) {
        let mut head = Head::default();
        for seq in 1..=3 {
            let (first, last) =
                if seq == 1 { (BatchNo(1), BatchNo(0)) } else { (BatchNo(seq), BatchNo(seq)) };
            let header = RecordHeader {
                volume: VOLUME,
                seq: Seq(seq),
                epoch: Epoch(1),
                writer: WRITER,
                prev: head.chain,
                first,
                last,
            };
            let rows = if seq == 1 { vec![holder(1).write()] } else { Vec::new() };
            let record = encode_record(&header, &rows);
            self.replace(&keys::journal(Seq(seq)), record.bytes.to_vec());
            head = record.head;
            if seq == 2 {
                self.put_checkpoint(head);
            }
        }
        let row = JournalRow { head, ..JournalRow::default() }.write();
        self.kv.commit(&[row, holder(1).write()], Durability::Immediate).expect("memory");
    }

    fn put_checkpoint(&self, head: Head) {
        let mut rows = PartRows::default();
        rows.add(INODE, b"key", b"value");
        let part = rows.encode();
        let (hash, len) = (Hash::of(&part), part.len() as u64);
        let first = (INODE, b"key".to_vec());
        let root = Root {
            volume: VOLUME,
            head,
            batch: BatchNo(2),
            rows: vec![(INODE, 1)],
            parts: vec![PartRef { first, hash, len }],
        };
        self.replace(&keys::checkpoint_part(head.seq, hash), part);
        self.replace(&keys::checkpoint_root(head.seq), root.encode());
    }

    fn lose(&self, key: &ObjectKey) {
        self.runtime.block_on(self.objects.delete(std::slice::from_ref(key))).expect("memory");
    }

    fn replace(&self, key: &ObjectKey, body: Vec<u8>) {
        self.lose(key);
        self.runtime.block_on(self.objects.put_new(key, body.into())).expect("memory");
    }

    fn flip(&self, key: &ObjectKey, at: usize) {
        let mut body = self.runtime.block_on(self.objects.get(key, None)).expect("there").to_vec();
        body[at] ^= 1;
        self.replace(key, body);
    }

    fn check(&self, data: Data) -> Outcome {
        let parts = CheckParts {
            view: Arc::from(self.kv.snapshot().expect("memory")),
            staged: self.staged.clone(),
            objects: self.objects.clone(),
            volume: VOLUME,
            data,
        };
        self.runtime.block_on(check(parts, &mut |_| {})).expect("a store that answers")
    }

    fn first_part(&self) -> ObjectKey {
        let page = self.runtime.block_on(self.objects.list(keys::CHECKPOINTS, None)).expect("memory");
        let part = page.objects.into_iter().find(|object| !object.key.as_str().ends_with("root"));
        part.expect("one part").key
    }
}

fn lines(outcome: &Outcome) -> Vec<String> {
    outcome.findings.listed.iter().map(ToString::to_string).collect()
}

#[test]
fn a_whole_volume_is_clean_and_counted() {
    let sample = Sample::new();
    let [listed, hashed] = [Data::Listed, Data::Hashed].map(|data| {
        let outcome = sample.check(data);
        assert_eq!(lines(&outcome), [""; 0], "{data:?}");
        assert_eq!((outcome.files, outcome.blocks, outcome.packs), (4, 3, 1));
        outcome.bytes_read
    });
    let frames = sample.pack.1.last().expect("three").end();
    assert!(listed + frames <= hashed, "{listed} and {hashed} bytes read");
    let view = sample.kv.snapshot().expect("memory");
    assert!(check_metadata(&*view).expect("memory").is_empty());
}

/// What is done to a volume, and a word of what is told of it.
type Plant = (FindingKind, &'static str, fn(&mut Sample));

/// Expects `kind` and nothing else for each.
fn expect(data: Data, plants: &[Plant]) {
    for (kind, word, plant) in plants {
        let mut sample = Sample::new();
        plant(&mut sample);
        let outcome = sample.check(data);
        let lines = lines(&outcome);
        assert!(lines.iter().any(|line| line.contains(word)), "{kind:?} {word}: {lines:?}");
        let others = outcome.findings.listed.iter().filter(|finding| finding.kind != *kind).count();
        assert_eq!(others, 0, "{kind:?} {word}: {lines:?}");
    }
}

#[test]
fn rows_that_do_not_decode_are_found() {
    use FindingKind::Row;
    expect(
        Data::Listed,
        &[
            (Row, "holder", |s| s.put(SYSTEM, "holder", "x")),
            (Row, "table 32: unknown", |s| s.put(Table(0x20), "key", "x")),
            (Row, "pack 0", |s| s.put(PACK, pack_key(PACK_ID), "x")),
            (Row, "counter 09", |s| s.put(COUNTER, [9], 1_i64.to_le_bytes())),
            (Row, "inline 0102", |s| s.put(INLINE, [1, 2], "x")),
            (Row, "seal 2", |s| s.put(OVERLAY, pair_key(FILE.0, 2), "x")),
            (Row, "blob 20", |s| s.put(BLOB, " ", ino_key(KEYED))),
        ],
    );
}

#[test]
fn names_that_do_not_fit_are_found() {
    use FindingKind::{Blob, Entry, Links, Orphan, Parent};
    expect(
        Data::Listed,
        &[
            (Entry, "inode 99 does not exist", |s| {
                s.put_entry(DIR, cookie("x"), "x", NONE, FileKind::Fifo);
            }),
            (Entry, "says Fifo", |s| s.put_entry(DIR, cookie("i"), "i", SMALL, FileKind::Fifo)),
            (Entry, "not in its place", |s| {
                s.delete(DENTRY, cookie("i").key(DIR));
                s.put_entry(DIR, cookie("other"), "i", SMALL, FileKind::Regular);
            }),
            (Entry, "is there twice", |s| {
                s.put_entry(DIR, Cookie(cookie("i").0 + 1), "i", SMALL, FileKind::Regular);
                s.put_inode(SMALL, &InodeRow { nlink: 2, ..small_row() });
            }),
            (Entry, "inode 5 is no directory", |s| {
                s.put_entry(LINK, cookie("x"), "x", SMALL, FileKind::Regular);
                s.put_inode(SMALL, &InodeRow { nlink: 2, ..small_row() });
            }),
            (Links, "inode 3: has 2 names, counts 3", |s| {
                s.put_inode(FILE, &InodeRow { nlink: 3, ..file_row() });
            }),
            (Links, "1 subdirectories, counts 4", |s| {
                s.put_inode(Ino::ROOT, &InodeRow { nlink: 4, ..root_row() });
            }),
            (Parent, "below itself", |s| s.put_inode(DIR, &InodeRow { parent: DIR, ..dir_row() })),
            (Parent, "its parent 3 is no directory", |s| {
                s.put_inode(DIR, &InodeRow { parent: FILE, ..dir_row() });
            }),
            (Orphan, "is no orphan", |s| s.delete(ORPHAN, ino_key(GONE))),
            (Orphan, "orphan with 1 names", |s| s.put(ORPHAN, ino_key(SMALL), "")),
            (Orphan, "inode 99 does not exist", |s| s.put(ORPHAN, ino_key(NONE), "")),
            (Blob, "inode 99 does not exist", |s| s.put(BLOB, "lost", ino_key(NONE))),
            (Blob, "inode 2 is no file", |s| s.put(BLOB, "odd", ino_key(DIR))),
        ],
    );
}

#[test]
fn content_that_does_not_fit_is_found() {
    use FindingKind::{Inline, Inode, Manifest, Seal, Xattr};
    fn add_window(s: &mut Sample, end: u64, row: ManifestRow) {
        let allocated = 50 + row.len;
        s.put(MANIFEST, pair_key(FILE.0, end), row.encode());
        s.put_inode(FILE, &InodeRow { allocated, ..file_row() });
        s.put_counter(Counter::AllocatedBytes, 2 * 4096 + 5 + allocated.cast_signed());
    }
    expect(
        Data::Listed,
        &[
            (Inode, "has 5 bytes allocated, counts 6", |s| {
                s.put_inode(SMALL, &InodeRow { allocated: 6, ..small_row() });
                s.put_counter(Counter::AllocatedBytes, 2 * 4096 + 50 + 6);
            }),
            (Inline, "inode 4: content in the metadata is missing", |s| s.delete(INLINE, ino_key(SMALL))),
            (Inline, "that its row does not know", |s| s.put(INLINE, ino_key(FILE), "x")),
            (Inline, "inode 99 does not exist", |s| s.put(INLINE, ino_key(NONE), "x")),
            (Inline, "7 bytes in the metadata, size 6", |s| s.put(INLINE, ino_key(LINK), "targets")),
            (Manifest, "segment 9 is missing", |s| {
                add_window(s, 60, ManifestRow { len: 10, segment: SegmentId(9), skip: 0 });
            }),
            (Manifest, "overlap", |s| {
                add_window(s, 45, ManifestRow { len: 10, segment: SegmentId(0), skip: 0 });
            }),
            (Manifest, "segment 1, which has 30", |s| {
                let row = ManifestRow { len: 30, segment: SegmentId(1), skip: 1 };
                s.put(MANIFEST, pair_key(FILE.0, 30), row.encode());
            }),
            (Manifest, "inode 99 does not exist", |s| {
                let row = ManifestRow { len: 1, segment: SegmentId(0), skip: 0 };
                s.put(MANIFEST, pair_key(NONE.0, 30), row.encode());
            }),
            (Xattr, "inode 99 does not exist", |s| s.put(XATTR, xattr_key(NONE, b"user.x"), "x")),
            (Xattr, "not a valid list", |s| {
                s.put(XATTR, xattr_key(DIR, b"system.posix_acl_default"), "x");
            }),
            (Seal, "says it is seal 1", |s| s.put(OVERLAY, pair_key(FILE.0, 2), seal(1, STAGED_ID))),
            (Seal, "inode 99 does not exist", |s| {
                s.put(OVERLAY, pair_key(NONE.0, 1), seal(1, STAGED_ID));
            }),
            (Seal, "neither here nor in the store", |s| {
                s.put(OVERLAY, pair_key(FILE.0, 2), seal(2, NOWHERE));
            }),
            (Seal, "is staged with 69 bytes", |s| s.staged.packs = [(STAGED_ID, 69)].into()),
        ],
    );
}

#[test]
fn references_that_are_counted_wrong_are_found() {
    use FindingKind::{Block, BlockReferences, Counter as Total, Pack, Segment, SegmentReferences};
    expect(
        Data::Listed,
        &[
            (Segment, "not queued for release", |s| s.delete(DEAD_SEGMENT, segment_key(SegmentId(2)))),
            (Segment, "is missing", |s| s.put(DEAD_SEGMENT, segment_key(SegmentId(9)), "")),
            (Segment, "but counted as named", |s| s.put(DEAD_SEGMENT, segment_key(SegmentId(1)), "")),
            (SegmentReferences, "is named 1 times, counts 2", |s| {
                s.put(SEGMENT_REFS, segment_key(SegmentId(1)), 2_u32.to_le_bytes());
            }),
            (Block, "is not in the index", |s| {
                s.delete(BLOCK, id(1).to_key());
                s.put_counter(Counter::StoredBytes, 70);
                let row = PackRow { live_bytes: 70, receipt: Some(make_pack().2) };
                s.put(PACK, pack_key(PACK_ID), row.encode());
            }),
            (Block, "-5 is not in the index", |s| {
                let location = BlockLocation::Frame { pack: NOWHERE, offset: 0, len: 70 };
                s.put(BLOCK, BlockId::of(b"new").to_key(), BlockRow { location, refs: 0 }.encode());
            }),
            (Block, "a block in it ends at", |s| {
                let location = BlockLocation::Frame { pack: PACK_ID, offset: 300, len: 70 };
                s.put(BLOCK, BlockId::of(b"new").to_key(), BlockRow { location, refs: 0 }.encode());
            }),
            (BlockReferences, "is named 2 times, counts 3", |s| s.put_block(0, 3)),
            (Pack, "150 bytes are needed, counts 151", |s| {
                let row = PackRow { live_bytes: 151, receipt: Some(make_pack().2) };
                s.put(PACK, pack_key(PACK_ID), row.encode());
            }),
            (Total, "inodes: 7 are there, counts 8", |s| s.put_counter(Counter::Inodes, 8)),
            (Total, "files: 4", |s| s.put_counter(Counter::Files, 3)),
            (Total, "allocated bytes", |s| s.put_counter(Counter::AllocatedBytes, 0)),
            (Total, "logical bytes", |s| s.put_counter(Counter::LogicalBytes, -1)),
            (Total, "stored bytes", |s| s.put_counter(Counter::StoredBytes, 1)),
            (Total, "7 is in use, the next would be 7", |s| s.put_counter(Counter::NextIno, 5)),
            (Total, "next segment number", |s| s.put_counter(Counter::NextSegment, 0)),
        ],
    );
}

#[test]
fn lost_and_shortened_objects_are_found_without_reading_them() {
    use FindingKind::Object;
    expect(
        Data::Listed,
        &[
            (Object, "is not in the store; 3 blocks", |s| s.lose(&keys::pack(PACK_ID))),
            (Object, "bytes, had", |s| {
                let mut bytes = s.pack.0.clone();
                bytes.pop();
                s.replace(&keys::pack(PACK_ID), bytes);
            }),
            (Object, "is not in the store", |s| {
                let row = BlockRow { location: BlockLocation::Object, refs: 0 };
                s.put(BLOCK, BlockId::of(b"single").to_key(), row.encode());
            }),
        ],
    );
}

#[test]
fn changed_bytes_are_found_by_reading_them() {
    use FindingKind::{Block, Data as Bytes};
    expect(
        Data::Hashed,
        &[
            (Bytes, "at 70", |s| s.flip(&keys::pack(PACK_ID), 70 + 65)),
            (Bytes, "footer", |s| s.flip(&keys::pack(PACK_ID), s.pack.0.len() - 1)),
            (Bytes, "not those that were stored", |s| {
                let receipt = Receipt { footer: Hash::of(b"other"), ..make_pack().2 };
                s.put(PACK, pack_key(PACK_ID), PackRow { live_bytes: 150, receipt: Some(receipt) }.encode());
            }),
            (Block, "the index has it at", |s| {
                let location = s.pack.1[0].location(PACK_ID);
                s.put(BLOCK, id(2).to_key(), BlockRow { location, refs: 0 }.encode());
            }),
            (Block, "holds 3 of 4 blocks", |s| {
                let location = s.pack.1[0].location(PACK_ID);
                s.put(BLOCK, BlockId::of(b"new").to_key(), BlockRow { location, refs: 0 }.encode());
            }),
            (Bytes, "blocks/", |s| {
                let new = BlockId::of(b"single");
                let row = BlockRow { location: BlockLocation::Object, refs: 0 };
                s.put(BLOCK, new.to_key(), row.encode());
                s.replace(&keys::block(new), vec![0; 65]);
            }),
        ],
    );
}

#[test]
fn a_broken_journal_is_found() {
    use FindingKind::{Checkpoint, Journal};
    expect(
        Data::Listed,
        &[
            (Journal, "journal/0000000000000002: is missing", |s| s.lose(&keys::journal(Seq(2)))),
            (Journal, "stand behind a record", |s| s.lose(&keys::journal(Seq(3)))),
            (Journal, "do not match their hash", |s| s.flip(&keys::journal(Seq(2)), 20)),
            (Journal, "continues none", |s| {
                let header = RecordHeader {
                    volume: VOLUME,
                    seq: Seq(4),
                    epoch: Epoch(1),
                    writer: WRITER,
                    prev: Hash::of(b"elsewhere"),
                    first: BatchNo(4),
                    last: BatchNo(4),
                };
                s.replace(&keys::journal(Seq(4)), encode_record(&header, &[]).bytes.to_vec());
            }),
            (Checkpoint, "do not match their hash", |s| s.flip(&keys::checkpoint_root(Seq(2)), 20)),
            (Checkpoint, "no such object", |s| {
                let part = s.first_part();
                s.lose(&part);
            }),
            (Checkpoint, "behind no record", |s| {
                s.put_checkpoint(Head { seq: Seq(2), chain: Hash::of(b"elsewhere"), epoch: Epoch(1) });
            }),
        ],
    );
}

#[test]
fn a_volume_taken_in_small_parts_is_judged_alike() {
    let small = Limits { inodes: 2, segments: 1, blocks: 1, packs: 1 };
    let judge = |sample: &Sample| {
        let mut seen = Seen::default();
        let view = sample.kv.snapshot().expect("memory");
        check_rows(&*view, small, &mut seen, &mut |_| {}).expect("memory");
        lines(&seen.outcome)
    };
    let sample = Sample::new();
    assert_eq!(judge(&sample), [""; 0]);
    sample.put_inode(FILE, &InodeRow { nlink: 3, ..file_row() });
    sample.put_block(0, 3);
    sample.put(SEGMENT_REFS, segment_key(SegmentId(1)), 2_u32.to_le_bytes());
    let found = judge(&sample);
    assert_eq!(found.len(), 3, "{found:?}");
}
