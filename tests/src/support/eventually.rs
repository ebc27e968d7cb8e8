//! Waiting with a deadline: polls until a condition holds, and says what it saw last when it never did.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks: short beside every deadline in use, long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls `probe` until it gives `Ok`, at least once and for at most `deadline`.
pub fn eventually<T, S: Debug>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, S>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(state) if started.elapsed() >= deadline => {
                bail!("{what}: not within {deadline:?}; last seen: {state:?}")
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// [`eventually`] for asynchronous probes; a probe that hangs is cut off at the deadline as well.
pub async fn eventually_async<T, S: Debug, F>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T, S>>,
{
    let end = tokio::time::Instant::now() + deadline;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(state)) => last = Some(state),
            Err(_) => bail!("{what}: not within {deadline:?}; last seen: {last:?}"),
        }
        if tokio::time::Instant::now() >= end {
            bail!("{what}: not within {deadline:?}; last seen: {last:?}")
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_of_the_first_success() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), "third look", || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(looks) }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn says_what_it_saw_last() {
        let error = eventually(Duration::ZERO, "the count", || Err::<(), _>("17 of 20")).unwrap_err();
        assert!(error.to_string().contains("the count"), "{error}");
        assert!(error.to_string().contains("17 of 20"), "{error}");
    }

    #[tokio::test]
    async fn a_hanging_probe_ends_at_the_deadline() {
        let hang = || std::future::pending::<Result<(), ()>>();
        assert!(eventually_async(Duration::from_millis(20), "never", hang).await.is_err());
    }
}
