//! Builds the programs for the kernel and hands them to the crate as the file `$BALANCER_EBPF`.

use std::path::{Path, PathBuf};
use std::process::exit;
use std::{env, io};

#[path = "../xtask/src/recipe.rs"]
#[expect(dead_code, reason = "xtask uses the rest")]
mod recipe;

const REMEDY: &str =
    "run `cargo xtask build` once: it installs the compiler and the linker for the kernel's programs";

fn main() {
    if let Err(message) = build() {
        eprintln!("error: {message}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let root = directory("CARGO_MANIFEST_DIR")?.join("..");
    let root = root.canonicalize().map_err(|error| failed("find", &root, &error))?;
    let out = directory("OUT_DIR")?;
    let arch =
        env::var("CARGO_CFG_TARGET_ARCH").map_err(|error| format!("CARGO_CFG_TARGET_ARCH: {error}"))?;

    let linker = recipe::tool(&root, "bpf-linker");
    let inputs = ["balancer-ebpf", "balancer-common", "Cargo.lock", "Cargo.toml", "xtask/src/recipe.rs"];
    for path in inputs.map(|name| root.join(name)).into_iter().chain([linker.clone()]) {
        println!("cargo:rerun-if-changed={}", path.display());
    }

    let toolchain = recipe::toolchain().map_err(|lacking| format!("{lacking}; {REMEDY}"))?;
    if !linker.is_file() {
        return Err(format!("no {}; {REMEDY}", linker.display()));
    }
    let mut target = target_directory(&out);
    let mut cargo = recipe::cargo(&root, toolchain, "build", &arch);
    if env::var_os("CARGO_FEATURE_OTHER_LAYOUT").is_some() {
        cargo.args(["--features", "other-layout"]);
        target = target.join("other");
    }
    cargo.arg("--target-dir").arg(&target).stdout(io::stderr());
    let status = cargo.status().map_err(|error| format!("failed to start {cargo:?}: {error}"))?;
    if !status.success() {
        let arguments: Vec<_> = cargo.get_args().map(|argument| argument.to_string_lossy()).collect();
        return Err(format!("{} {}: {status}", cargo.get_program().display(), arguments.join(" ")));
    }

    let built = target.join(recipe::TARGET).join("release/balancer-ebpf");
    let embedded = out.join("balancer-ebpf");
    strip(toolchain, &built, &embedded)?;
    println!("cargo:rustc-env=BALANCER_EBPF={}", embedded.display());
    Ok(())
}

/// Copies an object without its DWARF, which is most of it: the kernel reads BTF only.
fn strip(toolchain: &str, from: &Path, to: &Path) -> Result<(), String> {
    let libraries = recipe::ask_rustc(toolchain, &["--print", "target-libdir"])?;
    let objcopy = Path::new(libraries.trim()).with_file_name("bin").join("rust-objcopy");
    let status = recipe::through_rustup(toolchain, objcopy).arg("--strip-debug").args([from, to]).status();
    let status = status.map_err(|error| format!("failed to start rustup: {error}"))?;
    status.success().then_some(()).ok_or_else(|| format!("{} cannot be stripped: {status}", from.display()))
}

/// A directory of its own for the cargo that runs inside a cargo: two of them in one wait for each other for ever.
/// It is below the outer one's, four levels up from `out`, and so shared by all profiles.
fn target_directory(out: &Path) -> PathBuf {
    out.ancestors().nth(4).unwrap_or(out).join("ebpf")
}

fn directory(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set: run by cargo only"))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> String {
    format!("failed to {what} {}: {error}", path.display())
}
