//! The balancer as if it were another version of it: its maps have another layout, and longer records. For the run that
//! upgrades.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::balancer;
use crate::command::{cargo, root, run};
use crate::recipe;

/// What the other version is built from.
const SOURCES: [&str; 8] =
    [".cargo", "Cargo.toml", "Cargo.lock", "balancer", "balancer-common", "balancer-ebpf", "tests", "xtask"];
/// Where the records are.
const RECORDS: &str = "balancer-common/src";
/// What is otherwise in it: file of [`RECORDS`], what it says, what it would say.
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

/// Builds it; says where it is.
///
/// # Errors
/// The sources are not what [`CHANGES`] takes them for, or cannot be built.
pub fn build() -> Result<PathBuf> {
    let copy = root().join("target/other");
    copy_sources(&copy)?;
    change(&copy)?;
    balancer::binary(cargo("build").current_dir(&copy).env_remove("CARGO_TARGET_DIR"))
}

/// The workspace without what was built, besides the tools.
fn copy_sources(copy: &Path) -> Result<()> {
    let target = copy.join("target");
    fs::create_dir_all(&target).with_context(|| format!("failed to make {}", target.display()))?;
    for name in SOURCES {
        run(Command::new("rm").args(["--recursive", "--force"]).arg(copy.join(name)))?;
        // Times as well, so that cargo builds only what has changed.
        run(Command::new("cp").arg("--archive").arg(root().join(name)).arg(copy))?;
    }
    let (tools, link) = (recipe::tools(root()), recipe::tools(copy));
    run(Command::new("ln").args(["--symbolic", "--force", "--no-dereference"]).arg(tools).arg(link))
}

fn change(copy: &Path) -> Result<()> {
    for (file, from, to) in CHANGES {
        let path = copy.join(RECORDS).join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        fs::write(&path, changed(&text, from, to).with_context(|| format!("{file}: mend `CHANGES`"))?)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

fn changed(text: &str, from: &str, to: &str) -> Result<String> {
    ensure!(text.matches(from).count() == 1, "not there once: {from}");
    Ok(text.replacen(from, to, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_are_what_the_changes_take_them_for() {
        for (file, from, to) in CHANGES {
            let path = root().join(RECORDS).join(file);
            let text = fs::read_to_string(&path).unwrap();
            let other = changed(&text, from, to).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_ne!(other, text);
        }
    }
}
