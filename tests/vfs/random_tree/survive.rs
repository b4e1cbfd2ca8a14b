//! Kills, and what may be left after one.

use gravitonfs::base::name::Name;
use gravitonfs::base::time::Clock;
use gravitonfs::vfs::{Attr, RenameMode};

use super::super::model::content::Content;
use super::super::model::tree::{Id, Op, Place};
use super::{FUTURE_SECS, Moment, Run, SIZE_MAX, Version};

impl Run {
    pub(super) fn kill(&mut self) {
        match self.below(3) {
            0 => self.kill_during_rename(),
            1 => {
                if let Some(handle) = self.handles.first() {
                    self.note(format!("kill during fsync {}", handle.node));
                    let synced = self.world.vfs().fsync(self.handles[0].fh);
                    self.world.simulation().poll_for(synced, self.below(20));
                }
                self.world.kill_and_remount();
            }
            _ => {
                self.note("kill".to_owned());
                self.world.kill_and_remount();
            }
        }
        self.check_after_kill();
    }

    /// It has happened whole or not at all; and if it has, with the content of what it moved (rule R1).
    pub(super) fn kill_during_rename(&mut self) {
        let (from, to) = (self.a_used_place(), self.a_used_place());
        let mode = self.pick(&[RenameMode::Replace, RenameMode::Exchange]);
        let op = Op::Rename { from: from.clone(), to: to.clone(), mode };
        self.introduce_names(&op);
        self.note(format!("kill during {op:?}"));
        let begin = self.clock.now();
        let name = |at: &Place| Name::new(&at.1).unwrap();
        let places = ((self.inos[&from.0], &name(&from)), (self.inos[&to.0], &name(&to)));
        let renamed = self.world.vfs().rename(places.0, places.1, mode);
        self.world.simulation().poll_for(renamed, self.below(20));
        let moment = Moment { begin, end: self.clock.now() };
        self.world.kill_and_remount();
        let (source, target) = (self.tree.child(&from), self.tree.child(&to));
        let found = self.world.vfs().lookup(places.1.0, places.1.1);
        let found = found.ok().flatten().map(|attr| attr.ino);
        found.into_iter().for_each(|ino| self.world.vfs().forget(ino, 1));
        if source == target || found.is_none() || found != source.map(|id| self.inos[&id]) {
            return;
        }
        self.apply(&op, begin).unwrap();
        self.renamed_over(source, target, mode);
        for id in [Some(from.0), Some(to.0), source, target].into_iter().flatten() {
            // Times of content are compared with the content.
            if 0 < self.tree.nodes[&id].nlink && !self.versions.contains_key(&id) {
                self.unknown.insert(id);
                self.check_attr(id, moment);
            }
        }
    }

    pub(super) fn check_after_kill(&mut self) {
        self.handles.clear();
        self.lookups.clear();
        let orphans: Vec<Id> =
            self.tree.nodes.iter().filter(|(_, node)| node.nlink == 0).map(|(id, _)| *id).collect();
        orphans.into_iter().for_each(|id| self.remove_node(id));
        let ids: Vec<Id> = self.tree.nodes.keys().copied().collect();
        for id in ids {
            let attr = self.world.vfs().getattr(self.inos[&id]).unwrap();
            // Renewed in memory only.
            let node = self.tree.nodes.get_mut(&id).unwrap();
            let is_earlier = attr.atime <= node.atime || FUTURE_SECS <= attr.atime.secs;
            assert!(is_earlier || node.is_file(), "atime of {id}");
            node.atime = attr.atime;
            if let Some(versions) = self.versions.remove(&id) {
                self.adopt_survivor(id, &attr, &versions);
            }
        }
        self.check_everything();
        self.check_volume();
    }

    /// Everything the volume says of itself is true, and the store has what it needs.
    pub(super) fn check_volume(&self) {
        let outcome = self.world.check();
        let found: Vec<String> = outcome.findings.listed.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
        let files = self.world.vfs().statfs().unwrap().files;
        assert_eq!(outcome.files, files, "files that were read past, and files that are counted");
    }

    /// Takes over what a kill left of a file, if each byte of it was there at some time since it was last durable.
    pub(super) fn adopt_survivor(&mut self, id: Id, attr: &Attr, versions: &[Version]) {
        let bytes = self.with_handle(id, |run, fh| {
            run.world.runtime.block_on(run.world.vfs().read(fh, 0, attr.size as u32)).unwrap().to_vec()
        });
        assert_eq!(bytes.len() as u64, attr.size);
        let sizes = versions.iter().map(|version| version.bytes.len());
        let (least, most) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
        assert!(
            (least..=most).contains(&bytes.len()),
            "{} bytes of {id}, not {least} to {most}",
            bytes.len()
        );
        let known = |at: &usize| versions.iter().any(|version| version.bytes.get(*at) == Some(&bytes[*at]));
        if let Some(at) = (0..bytes.len()).find(|at| !known(at)) {
            panic!("after a kill {id} has {} at {at}, which nobody wrote", bytes[at]);
        }
        assert!(
            versions.iter().any(|version| version.mtime == attr.mtime),
            "mtime of {id}: {:?}",
            attr.mtime
        );
        let first = versions.iter().map(|version| version.ctime).min().unwrap();
        assert!(
            first <= attr.ctime && attr.ctime <= self.tree.nodes[&id].ctime,
            "ctime of {id}: {:?}",
            attr.ctime
        );
        let node = self.tree.nodes.get_mut(&id).unwrap();
        node.content = Content::found(bytes, SIZE_MAX);
        (node.atime, node.mtime, node.ctime) =
            (self.world.vfs().getattr(self.inos[&id]).unwrap().atime, attr.mtime, attr.ctime);
    }
}
