//! Waiting with a deadline: poll until a condition holds, or say which state was seen last.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

/// Long enough, on a busy machine too, for anything that takes an instant on an idle one.
pub const SOON: Duration = Duration::from_secs(10);
/// Short beside every deadline in use, long beside the cost of a probe.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls `probe` until it succeeds, at least once and for at most `deadline`. The error of the last attempt is the
/// state that was seen last.
pub fn eventually<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(state) if started.elapsed() >= deadline => {
                return Err(anyhow!("{what}: not within {deadline:?}; last seen: {state:#}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// [`eventually`] for a `probe` that must give a `wanted` value.
pub fn wait_for<T: Debug>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T>,
    mut wanted: impl FnMut(&T) -> bool,
) -> Result<T> {
    eventually(deadline, what, || {
        let value = probe()?;
        if wanted(&value) { Ok(value) } else { bail!("{value:?}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_of_the_first_success() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), "third look", || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { bail!("{looks}") }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn says_what_it_saw_last() {
        let error = eventually::<()>(Duration::ZERO, "the count", || bail!("17 of 20")).unwrap_err();
        assert!(error.to_string().contains("the count"), "{error}");
        assert!(error.to_string().contains("17 of 20"), "{error}");
    }

    #[test]
    fn waits_for_a_wanted_value_or_says_the_last_one() {
        let mut count = 0;
        let mut counted = || {
            count += 1;
            Ok(count)
        };
        assert_eq!(wait_for(Duration::from_secs(5), "three", &mut counted, |&count| count == 3).unwrap(), 3);
        let error = wait_for(Duration::ZERO, "three again", &mut counted, |&count| count == 3).unwrap_err();
        assert!(error.to_string().ends_with("last seen: 4"), "{error}");
    }
}
