//! The first process of a virtual machine: prepares it for the runs, runs them, and says how that went; or takes
//! [`crate::machines::orders`], where it is one of several on a network.
//!
//! `cargo xtask vm` puts it into the initramfs with `/plan`, one run a line, tab-separated: name, seconds that it may
//! take, program, arguments. The output of runs goes to the console; around each there is a line of ours.
#![expect(clippy::print_stdout, reason = "the console is the report")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::termios::tcdrain;

use crate::machines::machine::OBEY;
use crate::machines::orders::obey;
use crate::support::eventually::eventually;

/// The start of our own lines; `cargo xtask vm` looks for it.
pub const MARK: &str = "vm:";
/// QEMU's `isa-debug-exit`: a value written there ends the machine, with 2 × value + 1 as QEMU's exit code.
const EXIT_PORT: u16 = 0xf4;
const SUCCESS: u8 = 0x10;
const FAILURE: u8 = 0x11;

const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Runs the plan, or takes orders, and ends the machine.
pub fn main() -> ! {
    let outcome = prepare().and_then(|()| if takes_orders() { obey().map(|()| true) } else { run_all() });
    let code = match outcome {
        Ok(true) => SUCCESS,
        Ok(false) => FAILURE,
        Err(error) => {
            println!("{MARK} fault {error:#}");
            FAILURE
        }
    };
    println!("{MARK} end {code:#x}");
    // Or the machine ends before its console has printed all. Fails where the console is no terminal.
    let _ = tcdrain(std::io::stdout());
    end(code)
}

/// Ends the machine with QEMU's exit code 2 × `code` + 1. Debian's kernels for machines without hardware have no
/// /dev/port.
fn end(code: u8) -> ! {
    // SAFETY: this process may use the ports of the debugging device, and nothing else is there.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        if libc::ioperm(EXIT_PORT.into(), 4, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") code);
        }
    }
    // There is no exit port: an end of the first process is a panic of the kernel, and QEMU ends too.
    panic!("the machine does not end");
}

fn takes_orders() -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|word| word == OBEY))
}

fn prepare() -> Result<()> {
    for (kind, target) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("failed to make {target}"))?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("failed to mount {target}"))?;
    }
    // A service's limits on an ordinary host: the programs themselves must raise them.
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 524_288).context("failed to limit open files")?;
    load_modules(Path::new("/modules"))?;
    let loopback = Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status();
    if !loopback.context("failed to start ip")?.success() {
        bail!("the loopback interface does not come up");
    }
    Ok(())
}

/// Loads the modules in the order of their names.
fn load_modules(directory: &Path) -> Result<()> {
    /// The kernel is to unpack it (Linux 5.17).
    const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);
    let mut modules: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        let plain = module.extension().is_some_and(|extension| extension == "ko");
        let flags = if plain { ModuleInitFlags::empty() } else { COMPRESSED };
        let file = File::open(&module).with_context(|| format!("failed to open {}", module.display()))?;
        match finit_module(&file, c"", flags) {
            // One may load another itself.
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => println!("{MARK} module {} {error}", module.display()),
        }
    }
    Ok(())
}

/// Whether all went well.
fn run_all() -> Result<bool> {
    let plan = fs::read_to_string("/plan").context("failed to read /plan")?;
    let mut well = true;
    for line in plan.lines() {
        let mut words = line.split('\t');
        let mut next = || words.next().with_context(|| format!("/plan lacks words: {line}"));
        let (name, limit, program) = (next()?, next()?, next()?);
        let limit = Duration::from_secs(limit.parse().with_context(|| format!("{limit} in /plan"))?);
        println!("{MARK} begin {name}");
        let start = Instant::now();
        let status = run(program, words, limit).with_context(|| format!("run of {name}"))?;
        println!("{MARK} done {name} {status} {:.1}", start.elapsed().as_secs_f64());
        well &= status == "0";
    }
    Ok(well)
}

/// Runs one; its exit code, or why it has none.
fn run<'a>(program: &str, arguments: impl Iterator<Item = &'a str>, limit: Duration) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs([("PATH", "/bin"), ("HOME", "/root"), ("RUST_BACKTRACE", "0")])
        .envs([
            ("BALANCER_BIN", "/fixtures/balancer"),
            ("BALANCER_FIXTURES", "/fixtures"),
            ("BALANCER_VM", "1"),
        ])
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {program}"))?;
    if let Ok(status) = eventually(limit, program, || child.try_wait()?.context("running")) {
        let named = || status.to_string().replace(' ', "-");
        return Ok(status.code().map_or_else(named, |code| code.to_string()));
    }
    child.kill().context("failed to end a run")?;
    child.wait().context("failed to wait")?;
    Ok("out-of-time".to_owned())
}
