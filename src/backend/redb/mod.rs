//! The durable key-value store: one redb tree in one device, rows checksummed, latched after the first doubt.

mod device;
mod row;

use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing::{error, warn};

use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase as _, TableDefinition};

use self::device::DeviceBackend;
use crate::store::device::Device;
use crate::store::kv::{Durability, KeyValueStore, Snapshot, Table, Visit, Write};
use crate::store::{Error, Kind, Result};

/// All tables of ours are one table of redb, told apart by the first byte of the key: opening a table costs as much as
/// the look-up that follows, so one is opened where most operations would need two or three.
const ROWS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("rows");

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A database in a device that nobody else writes to.
pub struct RedbKv {
    /// None only while it is dropped.
    database: Option<Database>,
    device: Arc<dyn Device>,
    doubt: Arc<Doubt>,
    /// The view of the newest commit while nobody commits; leaf lock. Filled and emptied under the lock, emptied after
    /// each commit, so what a later call finds here is never older than a commit that has returned.
    newest: Mutex<Option<Arc<Rows>>>,
}

impl RedbKv {
    /// Opens the database in `device`, or makes one if the device is empty. After a crash it is what the last
    /// `Immediate` commit left, without reading all of it again. Keeps up to `cache_bytes` of pages in memory.
    ///
    /// # Errors
    /// `Corrupt` if the device holds anything but a database of ours.
    pub fn open(device: Arc<dyn Device>, cache_bytes: u64) -> Result<Self> {
        Self::open_reporting(device, cache_bytes, |done| {
            warn!(done, "metadata database was not left in order; checking all of it");
        })
    }

    /// Calls `on_repair` with the part done when the whole file has to be read.
    fn open_reporting(
        device: Arc<dyn Device>,
        cache_bytes: u64,
        on_repair: impl Fn(f64) + 'static,
    ) -> Result<Self> {
        let doubt = Arc::new(Doubt::default());
        let database = doubt.guard("open metadata database", || {
            let mut builder = Builder::new();
            builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX));
            builder.set_repair_callback(move |session| on_repair(session.progress()));
            let database = builder.create_with_backend(DeviceBackend::new(device.clone()))?;
            create_rows_if_missing(&database)?;
            Ok(database)
        })?;
        Ok(Self { database: Some(database), device, doubt, newest: Mutex::new(None) })
    }

    /// Bytes the database occupies on its device, free pages within it included.
    ///
    /// # Errors
    /// Of the device.
    pub fn used_bytes(&self) -> Result<u64> {
        self.device.len()
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("taken only by drop")
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, Option<Arc<Rows>>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create_rows_if_missing(database: &Database) -> std::result::Result<(), redb::Error> {
    match database.begin_read()?.open_table(ROWS) {
        Ok(_) => return Ok(()),
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(ROWS)?;
    transaction.commit()?;
    Ok(())
}

impl Drop for RedbKv {
    /// Makes all commits durable and marks the file as closed in order; unless it is in doubt: then nothing more is
    /// written, and the next open reads and checks all of it.
    fn drop(&mut self) {
        *self.newest() = None;
        let database = self.database.take();
        if self.doubt.check().is_err() {
            std::mem::forget(database);
            return;
        }
        let closed =
            self.doubt.guard("close metadata database", || Ok(database.map_or(Ok(()), Database::close)?));
        if let Err(error) = closed {
            error!(%error, "metadata database was not closed in order");
        }
    }
}

impl KeyValueStore for RedbKv {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        self.doubt.check()?;
        let mut newest = self.newest();
        let rows = match &*newest {
            Some(rows) => rows.clone(),
            None => {
                let rows = self.doubt.guard("read metadata database", || {
                    Ok(Arc::new(self.database().begin_read()?.open_table(ROWS)?))
                })?;
                newest.insert(rows).clone()
            }
        };
        Ok(Box::new(RedbSnapshot { rows, doubt: self.doubt.clone() }))
    }

    fn commit(&self, writes: &[Write], durability: Durability) -> Result<()> {
        self.doubt.check()?;
        let outcome = self.doubt.guard("commit to metadata database", || {
            let mut transaction = self.database().begin_write()?;
            match durability {
                Durability::Visible => transaction.set_durability(redb::Durability::None)?,
                Durability::Immediate => {
                    transaction.set_durability(redb::Durability::Immediate)?;
                    // Else opening after a crash would read the whole file: a mount of many files took minutes.
                    transaction.set_quick_repair(true);
                }
            }
            {
                let mut rows = transaction.open_table(ROWS)?;
                for write in writes {
                    let key = row::key(write.table, &write.key);
                    match &write.value {
                        Some(value) => rows.insert(&*key, &*row::value(&key, value))?,
                        None => rows.remove(&*key)?,
                    };
                }
            }
            transaction.commit()?;
            Ok(())
        });
        *self.newest() = None;
        outcome
    }
}

struct RedbSnapshot {
    rows: Arc<Rows>,
    doubt: Arc<Doubt>,
}

impl Snapshot for RedbSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.doubt.check()?;
        let key = row::key(table, key);
        let found = self.doubt.guard("read metadata row", || {
            let stored = self.rows.get(&*key)?;
            Ok(stored.map(|stored| row::verified(&key, stored.value()).map(<[u8]>::to_vec)))
        })?;
        found.transpose()
    }

    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        self.doubt.check()?;
        let lower = row::key(table, from);
        let upper = match to {
            Some(to) => Bound::Excluded(row::key(table, to)),
            None => row::end_of(table).map_or(Bound::Unbounded, Bound::Excluded),
        };
        if matches!(&upper, Bound::Excluded(upper) if *upper <= lower) {
            return Ok(());
        }
        let bounds = (Bound::Included(&*lower), upper.as_ref().map(|key| &**key));
        let mut range = self.doubt.guard("scan metadata rows", || Ok(self.rows.range::<&[u8]>(bounds)?))?;
        loop {
            let next = self.doubt.guard("scan metadata rows", || {
                let next = range.next().transpose()?;
                // Checked in here, for on a malformed page already the access panics.
                let checked = match &next {
                    Some((key, stored)) => row::verified(key.value(), stored.value()).map(drop),
                    None => Ok(()),
                };
                Ok(checked.map(|()| next))
            })?;
            let Some((key, stored)) = next? else { return Ok(()) };
            if let ControlFlow::Break(()) =
                visit(row::plain_key(key.value()), row::plain_value(stored.value()))?
            {
                return Ok(());
            }
        }
    }
}

/// Set by the first error: from then on the store refuses, for what its file holds is unknown.
#[derive(Default)]
struct Doubt {
    first: OnceLock<String>,
}

impl Doubt {
    fn check(&self) -> Result<()> {
        match self.first.get() {
            None => Ok(()),
            Some(first) => Err(Error::new(
                Kind::Internal,
                format!("metadata database is closed by an earlier error: {first}"),
            )),
        }
    }

    /// Runs `work`; remembers its failure. redb checks the pages it reads only when it repairs, and panics on bytes
    /// that it did not write: that is corruption too.
    fn guard<T>(&self, what: &str, work: impl FnOnce() -> std::result::Result<T, redb::Error>) -> Result<T> {
        let error = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => from_redb(what, error),
            Err(_) => Error::new(Kind::Corrupt, format!("{what}: the file is not what was written")),
        };
        // A second failure adds nothing.
        let _ = self.first.set(error.detail.clone());
        Err(error)
    }
}

fn from_redb(what: &str, error: redb::Error) -> Error {
    let kind = match error {
        redb::Error::Io(error) => return device::from_io(what, error),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_) => Kind::Corrupt,
        _ => Kind::Internal,
    };
    Error::new(kind, format!("{what}: {error}")).with_source(error)
}

#[cfg(test)]
mod tests;
