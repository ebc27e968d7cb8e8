//! The file system of a machine: our binaries, the system's commands, their libraries, the kernel's modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::archive::Archive;
use super::kernels::Kernel;
use crate::builds::artifacts::{Executable, binary};
use crate::command::{output, search_path};

/// Commands of the system that the fixtures call.
const COMMANDS: [&str; 10] = ["ip", "bridge", "ss", "nft", "tc", "ethtool", "ping", "nsenter", "mount", "wg"];
/// Tables of names that commands read, where the system has them.
const TABLES: [&str; 2] = ["/etc/protocols", "/etc/services"];
/// Binaries that harnesses start. The balancer comes on top.
const FIXTURES: [&str; 3] = ["stand-in-server", "fleet", "delay"];
const INIT: &str = "vm-init";
const DIRECTORIES: [&str; 6] = ["/proc", "/sys", "/run", "/tmp", "/var/lib", "/root"];
/// Modules that the runs need and that some kernels have not built in. Their dependencies are added by themselves.
const MODULES: [&str; 39] = [
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_tables",
    "nf_conntrack",
    "nft_ct",
    "nft_counter",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_limit",
    "nft_log",
    "nft_objref",
    "nft_chain_nat",
    "nft_nat",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "br_netfilter",
    "cls_u32",
    "dummy",
    "tun",
    "8021q",
    "bonding",
    "vrf",
    "wireguard",
    "ipv6",
    "af_packet",
];

/// Packs `files`, the plan of the runs, and all that harnesses start: the part that is the same for all kernels.
pub fn common(built: &[Executable], mut files: Vec<(String, PathBuf)>, plan: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.console();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    archive.file("/plan", plan.as_bytes());
    files.push(("/init".to_owned(), binary(built, INIT)?));
    files.push(("/fixtures/balancer".to_owned(), binary(built, "balancer")?));
    for name in FIXTURES {
        files.push((format!("/fixtures/{name}"), binary(built, name)?));
    }
    for command in COMMANDS {
        let found = search_path().into_iter().map(|directory| directory.join(command));
        let found = found.into_iter().find(|path| path.is_file());
        let found = found.with_context(|| format!("the command {command} is not installed"))?;
        files.push((format!("/bin/{command}"), found));
    }
    for (path, from) in &files {
        archive.copy(path, from)?;
    }
    for library in libraries(files.iter().map(|(_, from)| from))? {
        let path =
            library.to_str().with_context(|| format!("the name {} is not UTF-8", library.display()))?;
        archive.copy(path, &library)?;
    }
    for table in TABLES.iter().filter(|table| Path::new(table).is_file()) {
        archive.copy(table, Path::new(table))?;
    }
    Ok(archive)
}

/// Adds a kernel's modules, numbered in the order in which they must be loaded.
pub fn with_modules(mut common: Archive, kernel: &Kernel) -> Result<Vec<u8>> {
    let table = kernel.modules.join("modules.dep");
    let table = fs::read_to_string(&table).with_context(|| format!("failed to read {}", table.display()))?;
    for (number, module) in load_order(&table, &MODULES).iter().enumerate() {
        let name = module.rsplit('/').next().unwrap_or(module);
        common.copy(&format!("/modules/{number:03}-{name}"), &kernel.modules.join(module))?;
    }
    Ok(common.finish())
}

/// The shared libraries of `programs`, and the loader.
fn libraries<'a>(programs: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let text = output(Command::new("ldd").args(programs)).context("failed to ask for shared libraries")?;
    Ok(text.lines().filter_map(library).collect())
}

/// The path in `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
    let (path, _) = path.split_once(" (")?;
    path.starts_with('/').then(|| path.into())
}

/// Files of the modules `wanted` that are not built in, each after those it depends on.
fn load_order(dependencies: &str, wanted: &[&str]) -> Vec<String> {
    let table: BTreeMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs.split_whitespace().collect())))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for (file, needs) in wanted.iter().filter_map(|name| table.get(*name)) {
        // The table lists dependencies in the reverse order.
        for file in needs.iter().rev().chain([file]) {
            if !order.iter().any(|known| known == file) {
                order.push((*file).to_owned());
            }
        }
    }
    order
}

/// `nft_ct` in `kernel/net/netfilter/nft_ct.ko.xz`; file names may have dashes.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_loaded_first() {
        let table = "\
kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz
kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz
kernel/net/llc/llc.ko.xz:
kernel/net/sched/act-bpf.ko.xz:
";
        let expected = ["net/llc/llc", "net/802/stp", "net/bridge/bridge", "net/sched/act-bpf"]
            .map(|path| format!("kernel/{path}.ko.xz"));
        assert_eq!(load_order(table, &["bridge", "built_in", "act_bpf", "stp"]), expected);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        for (line, expected) in [
            (
                "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)",
                Some("/lib/x86_64-linux-gnu/libc.so.6"),
            ),
            ("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)", Some("/lib64/ld-linux-x86-64.so.2")),
            ("\tlinux-vdso.so.1 (0x00007ff)", None),
            ("/usr/sbin/ip:", None),
            ("\tstatically linked", None),
        ] {
            assert_eq!(library(line), expected.map(PathBuf::from), "{line}");
        }
    }
}
