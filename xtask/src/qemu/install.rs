//! QEMU itself: the system's package, or on Debian 12 the newer one of its backports.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{installed, output};
use crate::host::packages;

/// The program that runs a machine.
pub const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Older versions, on several threads, now and then execute half of an instruction that another processor is patching. A
/// kernel flips a static key so whenever the first program is attached to a hook, and panics in the packet path ("Oops:
/// int3" in `__netif_receive_skb_core`): within half a minute of attaching and detaching beside a flood of pings. QEMU's
/// commit deba78709a ("accel/tcg: Always lock pages before translation") ends it.
const OLDEST: (u32, u32) = (8, 1);
/// Debian 12 has QEMU 7.2.
const TOO_OLD: (&str, &str) = ("bookworm", "bookworm-backports");

/// Installs QEMU if it is missing or too old. apt keeps its lists of other packages in `cache`.
pub fn ensure(cache: &Path) -> Result<()> {
    if found()?.is_some_and(|(version, _)| version >= OLDEST) {
        return Ok(());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if codename(&release) == Some(TOO_OLD.0) {
        packages::install_from(&cache.join("backports"), TOO_OLD.1, &[PACKAGE])?;
    } else {
        packages::install(&[PACKAGE])?;
    }
    match found()? {
        Some((version, _)) if version >= OLDEST => Ok(()),
        Some((_, text)) => {
            bail!("QEMU {}.{} or newer is needed; {PROGRAM} reports: {text}", OLDEST.0, OLDEST.1)
        }
        None => bail!("the package {PACKAGE} has no {PROGRAM}"),
    }
}

/// The installed version, and the line that tells it; a version that cannot be read counts as the oldest.
fn found() -> Result<Option<((u32, u32), String)>> {
    if !installed(PROGRAM) {
        return Ok(None);
    }
    let text = output(Command::new(PROGRAM).arg("--version"))?;
    let first = text.lines().next().unwrap_or_default().to_owned();
    Ok(Some((version(&first).unwrap_or_default(), first)))
}

/// The version in `QEMU emulator version 7.2.22 (…)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The name of a release in `/etc/os-release`.
fn codename(release: &str) -> Option<&str> {
    release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(|name| name.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version("strange"), None);
        assert!((10, 0) >= OLDEST && (7, 2) < OLDEST);
    }

    #[test]
    fn the_codename_of_a_release_is_read() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\nVERSION_ID=\"12\"\n";
        assert_eq!(codename(debian), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
