//! Runs every fuzz target on its seeds, among them past findings.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::fuzz::{TARGETS, seed};

#[test]
fn every_fuzz_seed_passes_its_target() -> Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for target in TARGETS {
        let directory = seeds.join(target.name);
        let listed = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
        let mut count = 0;
        for entry in listed {
            let path = entry?.path();
            let name = path.display().to_string();
            let bytes = seed(&name, &fs::read_to_string(&path).with_context(|| name.clone())?);
            let bytes = bytes.map_err(anyhow::Error::msg).with_context(|| name.clone())?;
            println!("{name}: {} bytes", bytes.len());
            (target.feed)(&bytes);
            count += 1;
        }
        ensure!(count > 0, "{} holds no seed", directory.display());
    }
    Ok(())
}
