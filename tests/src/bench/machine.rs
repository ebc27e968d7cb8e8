//! The machine as a whole: the time of its processors, and whether something else takes some.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::support::files::read;

/// How long [`Noise::listen`] listens.
const LISTEN: Duration = Duration::from_secs(1);
/// Ticks of /proc/stat in a second: the kernel's USER_HZ, on every architecture that Rust's Linux has.
const USER_HZ: f64 = 100.0;

/// Seconds that all processors together have worked since the start of the machine.
pub fn busy_seconds() -> Result<f64> {
    let ticks = busy_ticks(&read("/proc/stat".as_ref())?).context("/proc/stat has no line `cpu`")?;
    #[expect(clippy::cast_precision_loss, reason = "ticks of some years are below 2^52")]
    Ok(ticks as f64 / USER_HZ)
}

/// user + nice + system + irq + softirq: neither idle, nor waiting for a disk, nor taken by a hypervisor.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    [0, 1, 2, 5, 6].into_iter().map(|index| ticks.get(index)).sum()
}

/// Processors of the machine.
#[expect(clippy::cast_precision_loss, reason = "machines have fewer than 2^52 processors")]
pub fn processors() -> Result<f64> {
    Ok(std::thread::available_parallelism().context("no processors")?.get() as f64)
}

/// Seconds that the threads of a process have worked since its start.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).context("no clock of a process")?;
    Ok(Duration::from(clock.now().context("failed to read a process's clock")?).as_secs_f64())
}

/// Memory of a process and of its children, in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let children = read(format!("/proc/{pid}/task/{pid}/children").as_ref())?;
    let children = children.split_whitespace().map(|pid| resident_bytes(pid.parse().context("a process")?));
    let status = read(format!("/proc/{pid}/status").as_ref())?;
    Ok(kibibytes(&status, "VmRSS:").with_context(|| status.clone())? * 1024
        + children.sum::<Result<u64>>()?)
}

/// Memory of the kernel's objects, in bytes.
pub fn slab_bytes() -> Result<u64> {
    let meminfo = read("/proc/meminfo".as_ref())?;
    Ok(kibibytes(&meminfo, "Slab:").with_context(|| meminfo.clone())? * 1024)
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// The machine before a run.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Noise {
    pub processors: usize,
    /// Average of the last minute.
    pub load: f64,
    /// Part of the processors' time that was taken.
    pub busy: f64,
}

impl Noise {
    /// Listens for a second, in which this process does nothing.
    pub fn listen() -> Result<Self> {
        let processors = std::thread::available_parallelism().context("no processors")?.get();
        let load = read("/proc/loadavg".as_ref())?;
        let load = load.split(' ').next().and_then(|word| word.parse().ok()).context("no load")?;
        let before = busy_seconds()?;
        std::thread::sleep(LISTEN);
        #[expect(clippy::cast_precision_loss, reason = "machines have fewer than 2^52 processors")]
        let busy = (busy_seconds()? - before) / LISTEN.as_secs_f64() / processors as f64;
        Ok(Self { processors, load, busy })
    }

    /// Why figures of this machine do not count; `None` if it is quiet.
    #[expect(clippy::cast_precision_loss, reason = "machines have fewer than 2^52 processors")]
    pub fn complaint(&self) -> Option<String> {
        let Self { processors, load, busy } = *self;
        let is_loud = busy > 0.05 || load > 0.25 * processors as f64;
        is_loud.then(|| {
            format!(
                "the machine is not quiet: before the run, {:.0} % of {processors} processors were busy, \
                 and the load was {load:.1}; figures of CPU time include that work",
                busy * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_neither_idle_nor_waiting_nor_stolen() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 900000000 0\ncpu0 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(7_600_321));
        assert_eq!(busy_ticks("cpu  1 20 300\n"), None);
        assert_eq!(busy_ticks("intr 1\n"), None);
    }

    #[test]
    fn a_machine_is_loud_by_its_load_or_its_processors() {
        for (processors, load, busy, loud) in
            [(2, 0.1, 0.01, false), (2, 0.6, 0.01, true), (8, 0.6, 0.01, false), (8, 0.1, 0.06, true)]
        {
            let noise = Noise { processors, load, busy };
            assert_eq!(noise.complaint().is_some(), loud, "{noise:?}");
        }
    }
}
