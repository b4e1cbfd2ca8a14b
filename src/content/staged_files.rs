//! What is staged on this machine, by the names of the files alone and without touching them: for who only looks.

use std::collections::HashMap;

use super::{single, staging};
use crate::base::hash::BlockId;
use crate::base::ids::PackId;
use crate::store::Result;
use crate::store::device::Directory;

/// Staged packs and blocks with the bytes of their files, the last of which may be torn.
#[derive(Clone, Debug, Default)]
pub struct StagedFiles {
    pub packs: HashMap<PackId, u64>,
    /// Of layout Single.
    pub blocks: HashMap<BlockId, u64>,
}

impl StagedFiles {
    /// What is in `directory` now.
    ///
    /// # Errors
    /// Of the disk.
    pub fn list(directory: &dyn Directory) -> Result<Self> {
        let mut found = Self::default();
        for (name, len) in directory.list()? {
            if let Some(pack) = staging::parse_file_name(&name) {
                found.packs.insert(pack, len);
            } else if let Some(block) = single::parse_file_name(&name) {
                found.blocks.insert(block, len);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory_device::MemoryDirectory;
    use crate::base::ids::WriterId;

    #[test]
    fn staged_files_are_known_by_their_names() {
        let directory = MemoryDirectory::new();
        let pack = PackId { writer: WriterId(7), number: 0x1f };
        let block = BlockId::of(b"a block");
        let names = [staging::file_name(pack), single::file_name(block), format!("{pack}.0"), "x".to_owned()];
        for name in names {
            directory.create(&name).expect("new").write_at(b"12345", 0).expect("room");
        }
        let found = StagedFiles::list(&directory).expect("lists");
        assert_eq!(found.packs, HashMap::from([(pack, 5)]));
        assert_eq!(found.blocks, HashMap::from([(block, 5)]));
    }
}
