//! One machine in QEMU, from its start to its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;
use crate::command::{Shown, installed, output};
use crate::host::packages;

const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
/// Older versions were not tried.
const OLDEST: (u32, u32) = (7, 2);
/// Exit codes of QEMU after the guest's init has written 0x10 or 0x11 to the exit port: twice the number and one more.
const SUCCESS: i32 = 33;
const FAILURE: i32 = 35;
/// The kernel's command line.
pub const APPEND: &str = "console=ttyS0 panic=-1 quiet loglevel=1 no_timer_check";
const POLL: Duration = Duration::from_millis(50);

/// Installs QEMU if it is missing.
pub fn ensure() -> Result<()> {
    if !installed(QEMU.0) {
        packages::install(&[QEMU.1])?;
    }
    let text = output(Command::new(QEMU.0).arg("--version"))?;
    if version(&text).is_none_or(|version| version < OLDEST) {
        let first = text.lines().next().unwrap_or_default();
        bail!("QEMU {}.{} or newer is needed; {} reports: {first}", OLDEST.0, OLDEST.1, QEMU.0);
    }
    Ok(())
}

/// The version in `QEMU emulator version 7.2.22 (…)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A machine that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its output.
    pub lines: Vec<String>,
    pub fault: Option<String>,
    pub took: Duration,
}

/// Boots `kernel` with `initramfs` and waits for the machine's end. Its output is also written to `log`.
pub fn boot(kernel: &Kernel, initramfs: &Path, log: &Path, limit: Duration) -> Result<Ended> {
    let (program, arguments) = common(kernel, initramfs);
    let mut command = Command::new(program);
    command.args(arguments).args(["-smp", "2", "-m", "2048", "-serial", "stdio", "-append", APPEND]);
    let console = File::create(log).with_context(|| format!("failed to write {}", log.display()))?;
    let started = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(console).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("failed to start {}", Shown(&command)))?;
    let is_late = loop {
        if child.try_wait().context("failed to wait for QEMU")?.is_some() {
            break false;
        }
        if started.elapsed() > limit {
            child.kill().context("failed to end QEMU")?;
            break true;
        }
        thread::sleep(POLL);
    };
    let ended = child.wait_with_output().context("failed to wait for QEMU")?;
    let text = fs::read(log).with_context(|| format!("failed to read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    fs::write(log, &text).with_context(|| format!("failed to write {}", log.display()))?;
    let lines = text.lines().map(str::to_owned).collect();
    let fault = match ended.status.code() {
        _ if is_late => Some(format!("it did not end within {} s", limit.as_secs())),
        Some(SUCCESS) => None,
        Some(0) => Some("the kernel panicked or the machine was reset".to_owned()),
        Some(FAILURE) => Some("a test inside failed".to_owned()),
        code => Some(format!("QEMU ended with {code:?}: {}", String::from_utf8_lossy(&ended.stderr).trim())),
    };
    Ok(Ended { lines, fault, took: started.elapsed() })
}

/// The program that starts a machine, and the options of every machine. The caller adds memory, processors, the serial line
/// and [`APPEND`].
pub fn common(kernel: &Kernel, initramfs: &Path) -> (&'static str, Vec<OsString>) {
    // Machines end with this process.
    let words = ["--pdeathsig", "KILL", QEMU.0, "-accel", acceleration(), "-M", "pc", "-cpu", "max"];
    let more = ["-nodefaults", "-display", "none", "-vga", "none", "-no-reboot"];
    let exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"];
    let words = words.into_iter().chain(more).chain(exit).map(OsString::from);
    let files = ["-kernel".into(), kernel.image.clone().into(), "-initrd".into(), initramfs.into()];
    ("setpriv", words.chain(files).collect())
}

/// KVM is used only with the processor's own module: without it `/dev/kvm` accepts machines, which then hang.
fn acceleration() -> &'static str {
    let loaded = ["kvm_intel", "kvm_amd"].iter().any(|name| Path::new("/sys/module").join(name).is_dir());
    if loaded && Path::new("/dev/kvm").exists() { "kvm" } else { "tcg,thread=multi" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version("strange"), None);
    }
}
