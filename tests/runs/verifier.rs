//! The programs' cost to the kernel's verifier, with limits: it gives up at 1,000,000 instructions and 512
//! bytes of stack, and both costs grow with the kernel's version. `cargo xtask vm` makes one table of the
//! output of all kernels.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use anyhow::{Result, ensure};
use tests::packet::cost::{Cost, costs};

/// Most instructions: a twentieth of the verifier's own limit.
const INSTRUCTIONS: u64 = 100_000;
/// Most bytes of stack.
const STACK: u64 = 512;

#[test]
fn every_program_is_within_its_limits() -> Result<()> {
    let costs = costs()?;
    println!(); // the harness has begun a line
    for cost in &costs {
        let milliseconds = cost.load.as_secs_f64() * 1000.0;
        // `cargo xtask vm` reads these lines.
        println!("verifier {} {} {} {milliseconds:.1}", cost.program, cost.instructions, cost.stack);
    }
    let is_beyond = |cost: &&Cost| cost.instructions > INSTRUCTIONS || cost.stack > STACK;
    let beyond: Vec<_> = costs.iter().filter(is_beyond).collect();
    ensure!(beyond.is_empty(), "beyond {INSTRUCTIONS} instructions or {STACK} octets of stack: {beyond:?}");
    Ok(())
}
