//! An alarm clock of the kernel's: one wake for each ring. A timer of the runtime's that is set anew each time costs two or
//! three.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    set_to: Option<Instant>,
}

impl Alarm {
    /// Must run inside the tokio runtime.
    pub fn new() -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .context("failed to make a timer")?;
        #[expect(
            deprecated,
            reason = "unsound for types that change their descriptor, which an `OwnedFd` does not"
        )]
        let timer =
            AsyncFd::with_interest(timer, Interest::READABLE).context("failed to wait for a timer")?;
        Ok(Self { timer, set_to: None })
    }

    /// Waits until `at`. It may be asked again with another time, without having rung.
    pub async fn rings(&mut self, at: Instant) -> io::Result<()> {
        if self.set_to != Some(at) {
            self.set(at)?;
        }
        loop {
            let mut ready = self.timer.readable().await?;
            let read = rustix::io::read(self.timer.get_ref(), &mut [0; 8]);
            // Either way there is nothing to read until the next ring.
            ready.clear_ready();
            match read {
                Ok(_) => {
                    self.set_to = None;
                    return Ok(());
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn set(&mut self, at: Instant) -> io::Result<()> {
        // No time at all would disarm it.
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: left };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.set_to = Some(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_once_at_the_last_time_that_it_was_set_to() {
        let ms = Duration::from_millis;
        let begun = Instant::now();
        let mut alarm = Alarm::new().unwrap();
        alarm.rings(begun + ms(20)).await.unwrap();
        assert!(begun.elapsed() >= ms(20));
        alarm.rings(begun).await.unwrap();
        assert!(begun.elapsed() >= ms(20), "a time that is over");
        for after in [ms(5), ms(60)] {
            let rang = tokio::time::timeout(ms(1), alarm.rings(Instant::now() + after + ms(100))).await;
            assert!(rang.is_err(), "given up before it rang");
        }
        let last = Instant::now() + ms(30);
        alarm.rings(last).await.unwrap();
        assert!(Instant::now() >= last);
    }
}
