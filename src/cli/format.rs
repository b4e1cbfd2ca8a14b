//! `gravitonfs format`, and what a volume says of itself.

use std::path::Path;
use std::sync::Arc;

use super::args::{self, Compression, Layout, Shape};
use super::daemon::Reporter;
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::open::{EngineConfig, open, start_runtime};
use super::options::{MountOptions, StoreOptions};
use super::stores::{Machine, Missing, Objects, Probe};
use super::volume::Volume;
use crate::base::ids::WriterId;
use crate::base::limits::INLINE_BYTES_MAX;
use crate::base::time::Random as _;
use crate::content::chunker::ChunkSizes;
use crate::maint::format::{ObjectSchema, format as write_superblock};
use crate::rt::{SystemRandom, TokioRuntime};
use crate::store::object::Fencing;
use crate::store::superblock::{
    BlockBytes, BlockCodec, Layout as StoredLayout, SchemaStore as _, Superblock, SuperblockError,
    VolumeShape,
};

/// Average length of a block: 256 KiB. Shorter ones find more duplicates and cost more metadata.
const BLOCK_BYTES_DEFAULT: u32 = 256 << 10;

/// Makes a volume.
///
/// # Errors
/// `Busy` if the location holds anything; of the store.
pub fn format(roots: &LocalRoots, arguments: &args::Format) -> Result<()> {
    let volume: Volume =
        arguments.volume.parse().map_err(|cause: String| Failure::usage(&arguments.volume, cause))?;
    if volume == Volume::Memory {
        return Err(Failure::usage(volume, "every mount of it is a new volume: there is nothing to format"));
    }
    let options = MountOptions::parse(&arguments.options)?;
    let shape = volume_shape(&arguments.shape)?;
    let runtime = start_runtime()?;
    let machine = Machine { clock: runtime.clock(), random: Arc::new(SystemRandom) };
    runtime.block_on(async {
        let failed = |error| Failure::store(&volume, &error);
        let opened = Objects::open(&volume, &options.store, Missing::Create, &machine).await;
        let objects = opened.map_err(failed)?;
        let superblock = create(&objects, &volume, shape, &machine).await?;
        let writer = WriterId(SystemRandom.next_u128());
        let fencing = objects.probe(writer, &SystemRandom, Probe::AtFormat).await.map_err(failed)?;
        if fencing == Fencing::Lease {
            eprintln!("gravitonfs: {}", weak_fencing(&volume));
        }
        // Opening it for writing makes its root directory, so that the first mount may be a read-only one.
        let config = EngineConfig {
            volume: &volume,
            purpose: Path::new("gravitonfs format"),
            create: false,
            options: &options,
            roots,
            log_filter: None,
        };
        let engine = open(&runtime, &config, &mut Reporter::silent()).await?;
        engine.close().await?;
        println!("{volume} is volume {}", superblock.volume_id());
        Ok(())
    })
}

/// What to say of a store whose conditional writes are ignored or race.
#[must_use]
pub fn weak_fencing(volume: &Volume) -> String {
    format!(
        "{volume}: conditional writes are not atomic on this store; a second host is kept out by listing the journal"
    )
}

/// What to say of journal records whose writer had lost the volume.
#[must_use]
pub fn other_branches(volume: &Volume, first: &str, count: usize) -> String {
    format!(
        "{volume}: {count} journal records of a writer that had lost the volume are not part of it, from {first} on"
    )
}

/// Writes the superblock of a new volume.
///
/// # Errors
/// `Busy` if the location holds anything; of the store.
pub async fn create(
    objects: &Objects,
    volume: &Volume,
    shape: VolumeShape,
    machine: &Machine,
) -> Result<Superblock> {
    let schema = ObjectSchema::new(objects.at_start.clone());
    let made = write_superblock(&schema, shape, &*machine.random, &*machine.clock).await;
    made.map_err(|error| refused(volume, error))
}

/// Reads the superblock, and makes a new volume of an empty location if `missing` says so.
///
/// # Errors
/// `NotFound` if the location is not formatted; `TooNew`; `Corrupt`; of the store.
pub async fn open_or_create(
    objects: &Objects,
    volume: &Volume,
    missing: Missing,
    machine: &Machine,
) -> Result<Superblock> {
    match ObjectSchema::new(objects.at_start.clone()).read().await {
        Err(SuperblockError::Missing) if missing == Missing::Create => {
            create(objects, volume, volume_shape(&Shape::default())?, machine).await
        }
        read => read.map_err(|error| refused(volume, error)),
    }
}

/// Reads the superblock of a volume that nobody has opened yet.
///
/// # Errors
/// As [`open_or_create`].
pub async fn read_superblock(
    volume: &Volume,
    options: &StoreOptions,
    runtime: &TokioRuntime,
) -> Result<Superblock> {
    let machine = Machine { clock: runtime.clock(), random: Arc::new(SystemRandom) };
    let opened = Objects::open(volume, options, Missing::Fail, &machine).await;
    let objects = opened.map_err(|error| Failure::store(volume, &error))?;
    open_or_create(&objects, volume, Missing::Fail, &machine).await
}

/// The shape that the arguments describe.
///
/// # Errors
/// `Usage` for block lengths that cannot be.
pub fn volume_shape(shape: &Shape) -> Result<VolumeShape> {
    let average = shape.block_size.map_or(Ok(BLOCK_BYTES_DEFAULT), u32::try_from);
    let sizes = average.ok().and_then(ChunkSizes::around).ok_or_else(|| {
        Failure::usage("--block-size", "blocks cannot be cut at this average length; try 64K to 1M")
    })?;
    Ok(VolumeShape {
        block_bytes: BlockBytes { min: sizes.min(), avg: sizes.avg(), max: sizes.max() },
        layout: match shape.layout {
            Layout::Framed => StoredLayout::Framed,
            Layout::Single => StoredLayout::Single,
        },
        codec: match shape.compression {
            Compression::Zstd => BlockCodec::Zstd,
            Compression::None => BlockCodec::None,
        },
        inline_bytes_max: INLINE_BYTES_MAX,
    })
}

fn refused(volume: &Volume, error: SuperblockError) -> Failure {
    match error {
        SuperblockError::Missing => {
            let advice = format!("gravitonfs format {volume}, or mount it with --create");
            Failure::new(Code::NotFound, volume, error, advice)
        }
        SuperblockError::Exists(_) => {
            Failure::new(Code::Busy, volume, error, "mount it, or choose another location")
        }
        SuperblockError::NotEmpty(_) => {
            Failure::new(Code::Busy, volume, error, "choose an empty location, or a prefix in the bucket")
        }
        SuperblockError::TooNew(_) => Failure::new(Code::TooNew, volume, error, "use a newer gravitonfs"),
        SuperblockError::Damaged(_) => {
            Failure::new(Code::Corrupt, volume, error, "restore the object named superblock from a copy")
        }
        SuperblockError::Store(error) => Failure::store(volume, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_that_cannot_be_cut_are_refused() {
        let with = |block_size| volume_shape(&Shape { block_size: Some(block_size), ..Shape::default() });
        assert_eq!(with(1 << 18).expect("usual").block_bytes.avg, 1 << 18);
        for block_size in [0, 1, 1 << 33] {
            assert_eq!(with(block_size).map_err(|failure| failure.code), Err(Code::Usage), "{block_size}");
        }
    }

    #[test]
    fn what_a_location_is_decides_the_exit_code() {
        let table = [
            (SuperblockError::Missing, Code::NotFound),
            (SuperblockError::NotEmpty("x".to_owned()), Code::Busy),
            (SuperblockError::TooNew("version=9".to_owned()), Code::TooNew),
            (SuperblockError::Damaged("magic".to_owned()), Code::Corrupt),
        ];
        for (error, code) in table {
            let failure = refused(&Volume::Memory, error);
            assert_eq!(failure.code, code, "{failure}");
        }
    }
}
