//! What machines are booted with.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::archive::Archive;
use super::kernels::{Kernel, Kernels};
use super::{initramfs, machine};
use crate::command::root;

/// What machines are booted with.
pub struct Bench {
    cache: PathBuf,
    pub kernels: Kernels,
}

impl Bench {
    /// Makes sure that there is a QEMU, and asks what kernels there are.
    ///
    /// # Errors
    /// This host can boot none, or something cannot be installed.
    pub fn prepare() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the machines are x86-64 ones, as the binaries in them, and this host is not");
        }
        machine::ensure()?;
        let cache = root().join("target/vm");
        fs::create_dir_all(&cache).with_context(|| format!("failed to make {}", cache.display()))?;
        let kernels = Kernels::open(&cache)?;
        Ok(Self { cache, kernels })
    }

    /// What boots the newest kernel of `series` with `contents` for a file system: program, options, command line of the
    /// kernel. The file system stays in the cache.
    ///
    /// # Errors
    /// The kernel cannot be had, or the file system not be written.
    pub fn recipe(
        &self,
        series: &str,
        contents: Archive,
    ) -> Result<(&'static str, Vec<OsString>, &'static str)> {
        let kernel = self.kernels.get(series)?;
        let initramfs = self.initramfs(&kernel, contents)?;
        let (program, arguments) = machine::common(&kernel, &initramfs);
        Ok((program, arguments, machine::APPEND))
    }

    pub fn initramfs(&self, kernel: &Kernel, contents: Archive) -> Result<PathBuf> {
        let path = self.cache.join(format!("initramfs-{}", kernel.release));
        let octets = initramfs::with_modules(contents, kernel)?;
        fs::write(&path, octets).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// Where files for machines are kept.
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}
