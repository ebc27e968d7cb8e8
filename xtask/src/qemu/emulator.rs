//! QEMU and the kernels that it can boot.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::archive::Archive;
use super::kernels::{Kernel, Kernels};
use super::{initramfs, install, machine};
use crate::command::root;

pub struct Emulator {
    cache: PathBuf,
    pub kernels: Kernels,
}

impl Emulator {
    /// Installs QEMU if it is missing or too old, and looks up the kernels that can be fetched.
    pub fn prepare() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the machines are x86-64 ones, as the binaries in them, but this host is not");
        }
        let cache = root().join("target/vm");
        fs::create_dir_all(&cache).with_context(|| format!("failed to make {}", cache.display()))?;
        install::ensure(&cache)?;
        let kernels = Kernels::open(&cache)?;
        Ok(Self { cache, kernels })
    }

    /// The command that boots the newest kernel of `series` with `contents` as its file system, which stays in the cache.
    pub fn command(&self, series: &str, contents: Archive) -> Result<(&'static str, Vec<OsString>)> {
        let kernel = self.kernels.get(series)?;
        let initramfs = self.initramfs(&kernel, contents)?;
        Ok(machine::common(&kernel, &initramfs))
    }

    /// Writes the file system with the modules of `kernel`.
    pub fn initramfs(&self, kernel: &Kernel, contents: Archive) -> Result<PathBuf> {
        let path = self.cache.join(format!("initramfs-{}", kernel.release));
        let bytes = initramfs::with_modules(contents, kernel)?;
        fs::write(&path, bytes).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// The directory of kernels, file systems and logs.
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}
