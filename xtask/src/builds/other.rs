//! The balancer in a made-up other version, with another layout of its maps and longer records. The upgrade run needs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::balancer;
use crate::command::{cargo, root, run};
use crate::recipe;

/// Parts of the workspace that the other version is built from.
const SOURCES: [&str; 8] =
    [".cargo", "Cargo.toml", "Cargo.lock", "balancer", "balancer-common", "balancer-ebpf", "tests", "xtask"];
const RECORDS: &str = "balancer-common/src";
/// The differences of the other version: a file in [`RECORDS`], its text, and the text in the other version.
const CHANGES: [(&str, &str, &str); 5] = [
    ("abi.rs", r#"LAYOUT: &str = "v1";"#, r#"LAYOUT: &str = "v2";"#),
    (
        "abi/flow.rs",
        "    pub seen_s: u32,\n}\n\nconst _: () = assert!(size_of::<Flow>() == 60);",
        "    pub seen_s: u32,\n    /// New.\n    pub later: u32,\n}\n\nconst _: () = assert!(size_of::<Flow>() == 64);",
    ),
    ("abi/flow.rs", "seen_s: now_s,\n        }", "seen_s: now_s,\n            later: now_s,\n        }"),
    (
        "abi/controller.rs",
        "    pub pad: [u8; 3],\n}\n\nconst _: () = assert!(size_of::<Controller>() == 80);",
        "    pub pad: [u8; 3],\n    /// New.\n    pub later: u64,\n}\n\nconst _: () = assert!(size_of::<Controller>() == 88);",
    ),
    (
        "abi/settings.rs",
        "    pub unsettled_until_s: u32,\n}\n\nconst _: () = assert!(size_of::<Settings>() == 88);",
        "    pub unsettled_until_s: u32,\n    /// New.\n    pub later: u64,\n}\n\nconst _: () = assert!(size_of::<Settings>() == 96);",
    ),
];

/// Builds the other version and returns the path of its binary.
pub fn build() -> Result<PathBuf> {
    let copy = root().join("target/other");
    copy_sources(&copy)?;
    change(&copy)?;
    balancer::build_with(cargo("build").current_dir(&copy).env_remove("CARGO_TARGET_DIR"))
}

/// Copies the workspace, and links the tools. Other builds stay out.
fn copy_sources(copy: &Path) -> Result<()> {
    let target = copy.join("target");
    fs::create_dir_all(&target).with_context(|| format!("failed to make {}", target.display()))?;
    for name in SOURCES {
        run(Command::new("rm").args(["--recursive", "--force"]).arg(copy.join(name)))?;
        // The copies keep their times, so cargo builds only changed files again.
        run(Command::new("cp").arg("--archive").arg(root().join(name)).arg(copy))?;
    }
    let (tools, link) = (recipe::tools(root()), recipe::tools(copy));
    run(Command::new("ln").args(["--symbolic", "--force", "--no-dereference"]).arg(tools).arg(link))
}

fn change(copy: &Path) -> Result<()> {
    for (file, from, to) in CHANGES {
        let path = copy.join(RECORDS).join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        fs::write(&path, changed(&text, from, to).with_context(|| format!("{file}: correct `CHANGES`"))?)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

fn changed(text: &str, from: &str, to: &str) -> Result<String> {
    ensure!(text.matches(from).count() == 1, "the source has this text not exactly once: {from}");
    Ok(text.replacen(from, to, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_fit_the_sources() {
        for (file, from, to) in CHANGES {
            let path = root().join(RECORDS).join(file);
            let text = fs::read_to_string(&path).unwrap();
            let other = changed(&text, from, to).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_ne!(other, text);
        }
    }
}
