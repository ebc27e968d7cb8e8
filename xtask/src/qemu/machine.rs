//! One machine in QEMU, from its start to its end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
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
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start {}", Shown(&command)))?;
    let console = child.stdout.take().context("a piped child has a standard output")?;
    let complaints = child.stderr.take().context("a piped child has a standard error")?;
    let mut log = File::create(log).with_context(|| format!("failed to write {}", log.display()))?;
    let listener = thread::spawn(move || -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for line in BufReader::new(console).split(b'\n') {
            let line = line.context("failed to read the machine's output")?;
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            writeln!(log, "{line}").context("failed to write the log")?;
            lines.push(line);
        }
        Ok(lines)
    });
    let complaining = thread::spawn(move || {
        BufReader::new(complaints).lines().map_while(Result::ok).collect::<Vec<_>>().join("; ")
    });
    let status = loop {
        if let Some(status) = child.try_wait().context("failed to wait for QEMU")? {
            break Some(status);
        }
        if started.elapsed() > limit {
            child.kill().context("failed to end QEMU")?;
            child.wait().context("failed to wait for QEMU")?;
            break None;
        }
        thread::sleep(POLL);
    };
    let lines = listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let complaints = complaining.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let fault = match status.map(|status| status.code()) {
        Some(Some(SUCCESS)) => None,
        Some(Some(0)) => Some("the kernel panicked or the machine was reset".to_owned()),
        Some(Some(FAILURE)) => Some("a test inside failed".to_owned()),
        Some(code) => Some(format!("QEMU ended with {code:?}: {complaints}")),
        None => Some(format!("it did not end within {} s", limit.as_secs())),
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
