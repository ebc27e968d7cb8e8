//! One machine in QEMU, from its start to its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::install::PROGRAM;
use super::kernels::Kernel;
use crate::command::Shown;

/// Exit codes of QEMU after the guest's init has written 0x10 or 0x11 to the exit port: twice the number and one more.
const SUCCESS: i32 = 33;
const FAILURE: i32 = 35;
/// The kernel's command line.
pub const APPEND: &str = "console=ttyS0 panic=-1 quiet loglevel=1 no_timer_check";
const POLL: Duration = Duration::from_millis(50);

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
    let words = ["--pdeathsig", "KILL", PROGRAM, "-accel", acceleration(), "-M", "pc", "-cpu", "max"];
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
