//! A bare Debian that systemd has booted in namespaces: the network of a host, and mounts, processes and cgroups of its own.
//! The kernel is this machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::network::namespace::Namespace;
use crate::support::cleanup::names_in;
use crate::support::eventually::{SOON, eventually};
use crate::support::process::Process;

/// systemd has started everything within this, on a busy machine too.
const BOOT: Duration = Duration::from_mins(1);

/// Joins the cgroup `$1` and leaves the caller's namespaces; `--kill-child` ends the host with the caller's process.
const LEAVE: &str = r#"echo $$ >"$1/cgroup.procs"
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child sh -ec "$2" sh "$3" "$4""#;

/// Becomes the first process of a host called `$2`; its files are those of `$1/files` above those of `$1/debian`. systemd sees a
/// container, and cannot change the settings of this machine's kernel.
const INIT: &str = r#"cd "$1"
hostname "$2"
mount -t overlay -o lowerdir=debian,upperdir=files,workdir=work overlay root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"
done
ln -s null dev/console
pivot_root . mnt
umount -l mnt
exec env -i container=balancer PATH=/usr/sbin:/usr/bin /lib/systemd/systemd </dev/null >/dev/null 2>&1"#;

/// A booted host; its processes, mounts and cgroups go on drop.
pub struct Debian {
    directory: PathBuf,
    /// `unshare`. Its child is the host's first process. It ends before its cgroup goes.
    process: Process,
    _cgroup: Cgroup,
}

impl Debian {
    /// A directory for the host called `name`, below `directory`, with the installed Debian `system`. Files that are put into
    /// [`files`] of it before the host boots are there.
    pub fn prepare(directory: &Path, name: &str, system: &Path) -> Result<PathBuf> {
        let host = directory.join(name);
        for part in ["files", "work", "root"] {
            fs::create_dir_all(host.join(part))
                .with_context(|| format!("failed to make {}", host.display()))?;
        }
        std::os::unix::fs::symlink(system, host.join("debian"))?;
        Ok(host)
    }

    /// Boots the host of a prepared `directory` in `namespace`, and waits until systemd has started everything.
    pub fn boot(namespace: &Namespace, directory: PathBuf) -> Result<Self> {
        let cgroup = Cgroup::new(namespace.name())?;
        let name = directory.file_name().context("a directory has a name")?.to_owned();
        let mut command = namespace.command("sh");
        command.args(["-ec", LEAVE, "sh"]).arg(&cgroup.0).arg(INIT).arg(&directory).arg(name);
        let process = Process::start(command, format!("systemd of {}", directory.display()))?;
        let host = Self { directory, process, _cgroup: cgroup };
        eventually(BOOT, "a booted Debian", || {
            let output = host.output("systemctl is-system-running")?;
            let state = String::from_utf8_lossy(&output.stdout);
            let failed = || host.run("systemctl --failed --no-legend").unwrap_or_default();
            ensure!(state.trim() == "running", "{state}{}", failed());
            Ok(())
        })?;
        Ok(host)
    }

    /// The files that were changed, and those that were put there before it booted.
    pub fn files(&self) -> PathBuf {
        files(&self.directory)
    }

    /// Runs a line of a shell in `/root`, as root, and returns its standard output.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.output(line)?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success(), "{line}: {}: {said}{errors}", output.status);
        Ok(said)
    }

    /// Runs a line of a shell in `/root`, as root, to its end.
    pub fn output(&self, line: &str) -> Result<Output> {
        let unshare = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let first = children.split_whitespace().next().context("it has no first process yet")?;
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--target", first]);
        command.args(["--", "env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"]);
        let line = format!("cd /root && {line}");
        command.args(["DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "sh", "-c", &line]);
        command.stdin(std::process::Stdio::null()).output().context("failed to start nsenter")
    }
}

/// The directory in which the files of a prepared host are put before it boots.
pub fn files(directory: &Path) -> PathBuf {
    directory.join("files")
}

/// A cgroup of version 2 at the root of the hierarchy; on drop it goes, with those in it. Its processes must have ended.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self> {
        let root = balancer::config::Host::here(&[]).cgroup2.context("cgroup2 is not mounted")?;
        let path = root.join(name);
        remove(&path);
        fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have been killed and may not have gone yet; `xtask test` tells of one that stays.
        let _ = eventually(SOON, "a removed cgroup", || {
            remove(&self.0);
            ensure!(!self.0.exists(), "{} is in use", self.0.display());
            Ok(())
        });
    }
}

fn remove(cgroup: &Path) {
    for name in names_in(cgroup, "") {
        if cgroup.join(&name).is_dir() {
            remove(&cgroup.join(name));
        }
    }
    // Fails as long as a process is there.
    let _ = fs::remove_dir(cgroup);
}
