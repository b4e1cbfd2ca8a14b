//! The bytes that a file may have after a kill: what was safe, or what was written over it since, byte by byte.

/// Bytes put at an offset, with the zeros before them if they went beyond the end.
#[derive(Clone)]
struct Edit {
    offset: usize,
    data: Vec<u8>,
}

/// See the module. Edits never shorten: what was cut is cut out of everything before it.
#[derive(Clone, Default)]
pub(super) struct Content {
    safe: Vec<u8>,
    edits: Vec<Edit>,
    len: usize,
}

impl Content {
    /// Content that no kill takes any more.
    pub(super) fn safe(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), safe: bytes, edits: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let begin = offset.min(self.len);
        let mut bytes = vec![0; offset - begin];
        bytes.extend_from_slice(data);
        self.len = self.len.max(offset + data.len());
        self.edits.push(Edit { offset: begin, data: bytes });
    }

    /// truncate(2). A cut holds at once; growing is as safe as a write.
    pub(super) fn resize(&mut self, size: usize) {
        if self.len < size {
            return self.write(size, &[]);
        }
        self.safe.truncate(size);
        self.edits.retain(|edit| edit.offset < size);
        for edit in &mut self.edits {
            edit.data.truncate(size - edit.offset);
        }
        self.len = size;
    }

    /// Makes zeros of what is in `offset..end`, at once.
    pub(super) fn punch(&mut self, offset: usize, end: usize) {
        zero(&mut self.safe, offset, end);
        for Edit { offset: begin, data } in &mut self.edits {
            zero(data, offset.saturating_sub(*begin), end.saturating_sub(*begin));
        }
    }

    /// Everything is safe now.
    pub(super) fn settle(&mut self) {
        self.settle_first(self.edits.len());
    }

    /// The first `count` of the edits that are not safe yet are safe now.
    pub(super) fn settle_first(&mut self, count: usize) {
        for Edit { offset, data } in self.edits.drain(..count) {
            let end = offset + data.len();
            if self.safe.len() < end {
                self.safe.resize(end, 0);
            }
            self.safe[offset..end].copy_from_slice(&data);
        }
    }

    /// Why a kill cannot have left `found`.
    pub(super) fn refute(&self, found: &[u8]) -> Option<String> {
        let (least, most) = (self.safe.len(), self.len);
        if !(least..=most).contains(&found.len()) {
            return Some(format!("{} bytes, not {least} to {most}", found.len()));
        }
        let is_safe = |(at, byte)| self.safe.get(at) == Some(byte);
        let mut known: Vec<bool> = found.iter().enumerate().map(is_safe).collect();
        for Edit { offset, data } in &self.edits {
            let places = known.iter_mut().zip(found).skip(*offset);
            for ((known, found), written) in places.zip(data) {
                *known |= found == written;
            }
        }
        let at = known.iter().position(|known| !known)?;
        let unknown = known.iter().filter(|known| !**known).count();
        let zeros = known.iter().zip(found).filter(|(known, byte)| !**known && **byte == 0).count();
        Some(format!(
            "{} at {at} of {}, which nobody wrote there (so it is of {unknown} bytes, {zeros} of them zero; {least} were safe)",
            found[at],
            found.len()
        ))
    }
}

fn zero(bytes: &mut [u8], from: usize, to: usize) {
    let to = to.min(bytes.len());
    if from < to {
        bytes[from..to].fill(0);
    }
}
