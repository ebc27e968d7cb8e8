//! Limits of a fixture process: thousands of connections need as many open files.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to the kernel's ceiling, or as far as the hard limit where root may not raise
/// that (in a container, say); returns the limit.
pub fn raise_open_files() -> Result<u64> {
    let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open").context("failed to read fs.nr_open")?;
    let ceiling: u64 = ceiling.trim().parse().context("fs.nr_open is not a number")?;
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, ceiling, ceiling) {
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("failed to read RLIMIT_NOFILE")?;
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard)
        }
        result => result.map(|()| ceiling),
    };
    limit.with_context(|| format!("failed to raise RLIMIT_NOFILE towards {ceiling}"))
}
