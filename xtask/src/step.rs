//! The steps of a verb.

use std::time::Instant;

use anyhow::{Context as _, Result};

/// Does one step, and prints its name and the time it took. An error gets the name too.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("── {name}");
    let start = Instant::now();
    let done = work().with_context(|| name.to_owned())?;
    println!("── {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}
