//! An initramfs: an uncompressed archive in the format of `cpio -H newc`.
//!
//! The format is in `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel's sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;
/// Name of the last entry.
const TRAILER: &str = "TRAILER!!!";

/// An unfinished archive. Parent directories are added by themselves.
#[derive(Clone, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Archive {
    /// Adds an executable file, unless the path exists already.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(path);
        self.entry(path, EXECUTABLE, (0, 0), content);
    }

    /// Adds a copy of this machine's file `from`.
    pub fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        if !self.known.contains(path) {
            self.file(path, &fs::read(from).with_context(|| format!("failed to read {}", from.display()))?);
        }
        Ok(())
    }

    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds `/dev/console`: without it the first process has no output.
    pub fn console(&mut self) {
        self.parents("/dev/console");
        self.entry("/dev/console", CONSOLE, (5, 1), &[]);
    }

    /// Returns the whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').filter(|&(at, _)| at > 0) {
            self.entry(&path[..at], DIRECTORY, (0, 0), &[]);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        if !self.known.insert(path.to_owned()) {
            return;
        }
        let name = path.trim_start_matches('/');
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let number = self.known.len() as u32;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // Inode, mode, uid, gid, links, time, size, two numbers each for the file's device and the node, name's size, checksum.
        let fields = [number, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_byte_for_byte() {
        let mut archive = Archive::default();
        archive.file("/a/b", b"hello");
        archive.file("/a/b", b"ignored");
        let text = String::from_utf8(archive.finish()).unwrap();
        let head = |number: u32, mode: &str, links: u32, size: u32, name: u32| {
            let zero = "00000000";
            format!(
                "070701{number:08x}{mode}{zero}{zero}{links:08x}{zero}{size:08x}{zero}{zero}{zero}{zero}{name:08x}{zero}"
            )
        };
        let expected = [
            head(1, "000041ed", 2, 0, 2) + "a\0",
            head(2, "000081ed", 1, 5, 4) + "a/b\0\0\0hello\0\0\0",
            head(3, "00000000", 1, 0, 11) + "TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(text, expected.concat());
    }
}
