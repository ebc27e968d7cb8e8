//! Notices when Juju has rewritten the file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Watches one file by `stat`: Juju writes a new `agent.conf` and renames it over the old one. It watches a key file just as
/// well.
#[derive(Clone, Debug)]
pub struct Follow {
    path: PathBuf,
    seen: Option<Stamp>,
}

/// Tells two versions of a file apart, except for a rewrite in place within one tick of the clock that keeps the length.
/// Juju never rewrites in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Follow {
    /// Follows the file at `path`, without having read it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), seen: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file has changed since the last call. The first call says yes, so that the caller reads the file. A
    /// file that is missing or out of reach has not changed; one that is back has.
    pub fn changed(&mut self) -> bool {
        let Ok(metadata) = fs::metadata(&self.path) else { return false };
        let stamp = Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        self.seen.replace(stamp) != Some(stamp)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::*;

    #[test]
    fn every_rewrite_is_told_once() {
        type Step = (&'static str, fn(&Path), bool);
        let rows: [Step; 8] = [
            ("no file", |_| (), false),
            ("it appears", |path| fs::write(path, "one").unwrap(), true),
            ("untouched", |_| (), false),
            (
                "longer, the time set back",
                |path| {
                    let before = fs::metadata(path).unwrap().modified().unwrap();
                    fs::write(path, "three").unwrap();
                    File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
                },
                true,
            ),
            (
                "as long, later",
                |path| {
                    let before = fs::metadata(path).unwrap().modified().unwrap();
                    let later = before + Duration::from_nanos(1);
                    File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
                },
                true,
            ),
            (
                "another of the same time and length is renamed over it",
                |path| {
                    let (before, new) =
                        (fs::metadata(path).unwrap().modified().unwrap(), path.with_extension("new"));
                    fs::write(&new, "other").unwrap();
                    File::options().write(true).open(&new).unwrap().set_modified(before).unwrap();
                    fs::rename(&new, path).unwrap();
                },
                true,
            ),
            ("removed", |path| fs::remove_file(path).unwrap(), false),
            ("it is back", |path| fs::write(path, "back again").unwrap(), true),
        ];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.conf");
        let mut follow = Follow::new(&path);
        for (what, act, expected) in rows {
            act(&path);
            assert_eq!(follow.changed(), expected, "{what}");
            assert!(!follow.changed(), "{what}, asked again");
        }
    }
}
