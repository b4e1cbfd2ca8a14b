//! Making a volume, and finding out what one is.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::ids::VolumeId;
use crate::base::time::{Clock, Random};
use crate::store::object::MutableObjectStore;
use crate::store::superblock::{SchemaStore, Superblock, SuperblockError, VolumeShape};
use crate::store::{Kind, keys};

/// The superblock as an object of the volume itself.
pub struct ObjectSchema {
    objects: Arc<dyn MutableObjectStore>,
}

impl ObjectSchema {
    #[must_use]
    pub fn new(objects: Arc<dyn MutableObjectStore>) -> Self {
        Self { objects }
    }
}

#[async_trait]
impl SchemaStore for ObjectSchema {
    async fn read(&self) -> Result<Superblock, SuperblockError> {
        match self.objects.get(&keys::superblock(), None).await {
            Ok(bytes) => Superblock::decode(&bytes),
            Err(error) if error.kind == Kind::NotFound => Err(SuperblockError::Missing),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(&self, superblock: &Superblock) -> Result<(), SuperblockError> {
        let page = self.objects.list("", None).await?;
        if let Some(object) = page.objects.first() {
            return Err(self.occupied(object.key.to_string()).await);
        }
        if page.more {
            // Names that cannot be ours are not listed, but they are there.
            return Err(SuperblockError::NotEmpty("foreign objects".into()));
        }
        let body = Bytes::from(superblock.encode());
        match self.objects.put_new(&keys::superblock(), body.clone()).await {
            Ok(_) => Ok(()),
            // Either somebody was faster, or our own first attempt arrived although its answer was lost.
            Err(error) if error.kind == Kind::Precondition => match self.read().await? {
                found if found == *superblock => Ok(()),
                found => Err(SuperblockError::Exists(found.volume_id())),
            },
            Err(error) => Err(error.into()),
        }
    }
}

impl ObjectSchema {
    async fn occupied(&self, first_key: String) -> SuperblockError {
        match self.read().await {
            Ok(found) => SuperblockError::Exists(found.volume_id()),
            Err(SuperblockError::Missing) => SuperblockError::NotEmpty(first_key),
            Err(error) => error,
        }
    }
}

/// Makes a volume in an empty location.
///
/// # Errors
/// `Exists` or `NotEmpty` if something is there already, which is left alone; of the store.
pub async fn format(
    schema: &dyn SchemaStore,
    shape: VolumeShape,
    random: &dyn Random,
    clock: &dyn Clock,
) -> Result<Superblock, SuperblockError> {
    let volume = VolumeId(random.next_u128());
    let superblock = Superblock::new(shape, volume, random.next_u128(), clock.now().secs);
    schema.create(&superblock).await?;
    Ok(superblock)
}
