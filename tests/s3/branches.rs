//! Two hosts on a server whose conditional writes do not hold: they mount at the same moment and write.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::backend::memory_kv::MemoryKv;
use gravitonfs::base::ids::{PackId, VolumeId, WriterId};
use gravitonfs::base::time::Random as _;
use gravitonfs::commit::{Batch, Limits, Staging};
use gravitonfs::maint::recovery::{Access, Claim, MountError, MountParts, Mounted, mount};
use gravitonfs::rt::{SystemRandom, TokioRuntime};
use gravitonfs::store::block::UploadTicket;
use gravitonfs::store::kv::{Snapshot as _, Table};
use gravitonfs::store::object::{Fencing, ImmutableObjectStore as _};
use gravitonfs::store::probe::probe_conditional_writes;
use gravitonfs::store::schema::merge::SchemaMerge;
use gravitonfs::store::{Result, keys};

use crate::s3::{Mode, S3Server};
use crate::{BUCKET, open, options};

const ROWS: Table = Table(1);

struct NothingStaged;

#[async_trait]
impl Staging for NothingStaged {
    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _: PackId) -> Result<Option<UploadTicket>> {
        Ok(None)
    }
}

/// A mount with an empty disk.
fn mount_on(
    server: &S3Server,
    runtime: &TokioRuntime,
    access: Access,
) -> std::result::Result<Mounted, MountError> {
    let store = runtime.block_on(open(options(server)));
    let writer = match &access {
        Access::Write(claim) => claim.writer,
        Access::ReadOnly => WriterId(SystemRandom.next_u128()),
    };
    let found = runtime.block_on(probe_conditional_writes(&store, writer, &SystemRandom)).expect("probe");
    assert_eq!(found, Fencing::Lease);
    store.set_fencing(found);
    let parts = MountParts {
        kv: Arc::new(MemoryKv::new()),
        log: Arc::new(MemoryDirectory::new()),
        objects: Arc::new(store),
        rules: Arc::new(SchemaMerge),
        clock: runtime.clock(),
        spawner: runtime.spawner(),
        limits: Limits::default(),
        volume: VolumeId(1),
        access,
    };
    let mounted = runtime.block_on(mount(parts, &|_| {}))?;
    mounted.committer.attach_staging(Arc::new(NothingStaged));
    Ok(mounted)
}

/// Takes the volume, stores packs and commits rows that name them; returns the keys of those that were acknowledged.
fn write_as(server: &S3Server, host: &str) -> Vec<Vec<u8>> {
    let runtime = TokioRuntime::new(2, 4).expect("threads for a test");
    let writer = WriterId(SystemRandom.next_u128());
    let claim =
        Claim { host: host.into(), boot_id: "boot".into(), writer, tier: "remote".into(), takeover: true };
    let mut acknowledged = Vec::new();
    if let Ok(mounted) = mount_on(server, &runtime, Access::Write(claim)) {
        let packs = runtime.block_on(open(options(server)));
        for number in 0..4 {
            let body = Bytes::from(format!("{host} {number}"));
            let pack = keys::pack(PackId { writer, number });
            runtime.block_on(packs.put_new(&pack, body)).expect("put pack");
            let mut batch = Batch::new();
            let key = format!("{host}-{number}").into_bytes();
            batch.put(ROWS, key.clone(), pack.as_str());
            let Ok(ticket) = mounted.committer.submit(batch) else { break };
            if runtime.block_on(mounted.committer.flush(ticket)).is_ok() {
                acknowledged.push(key);
            }
        }
        runtime.block_on(mounted.committer.stop()).expect("stops");
    }
    acknowledged
}

fn two_writers_keep_out_of_each_others_objects(mode: Mode) {
    let server = S3Server::start(mode);
    server.create_bucket(BUCKET);
    let barrier = Barrier::new(2);
    let acknowledged: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let write = |host| {
            let (server, barrier) = (&server, &barrier);
            scope.spawn(move || {
                barrier.wait();
                write_as(server, host)
            })
        };
        let writers = [write("one"), write("other")];
        writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect()
    });
    assert!(!acknowledged.is_empty(), "{mode:?}: somebody holds the volume");

    let is_data = |key: &str| key.contains("/journal/") || key.contains("/packs/");
    let put: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|request| request.kind() == "put" && is_data(&request.key))
        .map(|request| request.key)
        .collect();
    let names: BTreeSet<_> = put.iter().cloned().collect();
    assert_eq!(names.len(), put.len(), "{mode:?}: a name was used twice: {put:?}");
    let stored: BTreeSet<_> =
        server.objects().list(BUCKET).into_iter().map(|(key, _)| key).filter(|key| is_data(key)).collect();
    assert_eq!(stored, names, "{mode:?}: nothing is deleted");

    let runtime = TokioRuntime::new(2, 4).expect("threads for a test");
    let found = mount_on(&server, &runtime, Access::ReadOnly).expect("rebuilds");
    let view = found.committer.view().expect("view");
    for key in &acknowledged {
        let pack = view.get(ROWS, key).expect("readable");
        let pack = String::from_utf8(pack.expect("what was acknowledged is there")).expect("text");
        assert!(stored.contains(&format!("volume/{pack}")), "{mode:?}: {pack}");
    }
    for branch in &found.other_branches {
        assert!(stored.contains(&format!("volume/{branch}")), "{mode:?}: {branch} is reported and kept");
    }
    runtime.block_on(found.committer.stop()).expect("stops");
}

#[test]
fn two_writers_are_kept_apart_where_conditions_are_ignored() {
    two_writers_keep_out_of_each_others_objects(Mode::IgnoreConditional);
}

#[test]
fn two_writers_are_kept_apart_where_conditions_race() {
    two_writers_keep_out_of_each_others_objects(Mode::RacyConditional);
}
