//! The compiler, the linker and the flags of the kernel's programs.
//!
//! `balancer/build.rs` includes this file, so it uses the standard library only.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler. Only a nightly one can build `core` for the kernel.
pub const TOOLCHAIN: &str = "nightly-2026-05-20";
/// Another name of the compiler, where it is the same build.
pub const UNDATED: &str = "nightly";
/// The commit that [`TOOLCHAIN`] was built from.
pub const COMMIT: &str = "e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a";
/// The version of bpf-linker. It uses the LLVM of the compiler that runs it.
pub const LINKER: &str = "0.10.3";
/// rustc's name of the kernel's instruction set.
pub const TARGET: &str = "bpfel-unknown-none";

/// The directory of the project's own tools in the workspace `root`.
pub fn tools(root: &Path) -> PathBuf {
    root.join("target/tools")
}

/// One of them.
pub fn tool(root: &Path, name: &str) -> PathBuf {
    tools(root).join("bin").join(name)
}

/// rustup's name of the installed compiler: [`TOOLCHAIN`], or [`UNDATED`] if that is the same build.
pub fn toolchain() -> Result<&'static str, String> {
    let Some(lacking) = lacks(TOOLCHAIN) else { return Ok(TOOLCHAIN) };
    match lacks(UNDATED) {
        None => Ok(UNDATED),
        Some(undated) => Err(format!("{lacking}; {undated}")),
    }
}

/// The reason why the toolchain `name` cannot build the programs, if there is one.
pub fn lacks(name: &str) -> Option<String> {
    match differs(name) {
        None => sources_missing(name),
        differing => differing,
    }
}

/// The difference between the toolchain `name` and the compiler, if there is one.
pub fn differs(name: &str) -> Option<String> {
    let version = match ask_rustc(name, &["--version", "--verbose"]) {
        Ok(version) => version,
        Err(error) => return Some(error),
    };
    let found = commit(&version).unwrap_or("unknown");
    (found != COMMIT).then(|| format!("toolchain {name} is another build (commit {found})"))
}

fn sources_missing(name: &str) -> Option<String> {
    let sysroot = match ask_rustc(name, &["--print", "sysroot"]) {
        Ok(sysroot) => sysroot,
        Err(error) => return Some(error),
    };
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    (!core.is_file()).then(|| format!("toolchain {name} has no rust-src"))
}

pub fn ask_rustc(toolchain: &str, question: &[&str]) -> Result<String, String> {
    let output = through_rustup(toolchain, "rustc").args(question).output();
    let output = output.map_err(|error| format!("rustup cannot be started: {error}"))?;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(answer).ok_or_else(|| format!("toolchain {toolchain} is not installed"))
}

/// The commit in the output of `rustc --version --verbose`.
pub fn commit(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("commit-hash: "))
}

/// `cargo VERB` over the kernel's programs, for hosts of `arch`.
pub fn cargo(root: &Path, toolchain: &str, verb: &str, arch: &str) -> Command {
    let mut command = through_rustup(toolchain, "cargo");
    command.current_dir(root).env("PATH", path_with(&tools(root).join("bin"))).arg(verb);
    command.args(["--package", "balancer-ebpf", "--bins", "--release", "--target", TARGET]);
    command.args(["-Z", "build-std=core"]);
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(), // the source of BTF
        "-Clink-arg=--btf".into(),
        "-Ctarget-cpu=v3".into(), // 32-bit arithmetic, atomics that return a value
        // LLVM 22 dies of SIGILL on a 16-byte aligned memcpy that no earlier pass has expanded.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        // An unrolled loop over 16 controllers spills more registers than the stack of 512 bytes holds.
        "-Cllvm-args=-unroll-full-max-count=1".into(),
        "-Clink-arg=--llvm-args=-unroll-full-max-count=1".into(),
    ];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // The workspace's profile alone decides how they are built. A caller's variables would overrule it, and with
    // CARGO_INCREMENTAL=0 `owner_syn` needs more stack than 512 bytes.
    forget(&mut command, &["CARGO_PROFILE_"]);
    command.env("CARGO_INCREMENTAL", "1");
    command
}

/// `program` of a toolchain, without the environment of the cargo that runs this.
pub fn through_rustup(toolchain: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain]).arg(program);
    let foreign =
        ["CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "RUSTUP_TOOLCHAIN"];
    for name in foreign.into_iter().chain(["CARGO_BUILD_TARGET", "CARGO_BUILD_RUSTFLAGS", "RUSTFLAGS"]) {
        command.env_remove(name);
    }
    forget_package(&mut command);
    command
}

/// Removes cargo's variables about the running package: build scripts would run again for each package.
pub fn forget_package(command: &mut Command) {
    forget(command, &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]);
}

/// Hides variables with these prefixes from `command`.
fn forget(command: &mut Command, prefixes: &[&str]) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
}

fn path_with(first: &Path) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let entries = std::iter::once(first.to_owned()).chain(env::split_paths(&path));
    env::join_paths(entries).unwrap_or(path)
}
