//! Notice of changes to interfaces, addresses, routes, rules and hooks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use rtnetlink::MulticastGroup;
use tokio::{task::JoinSet, time::sleep_until};

/// A wave of changes is over after this long without another.
const CALM: Duration = Duration::from_secs(1);
/// So many reports of a wave come as fast as the caller takes them.
const AT_ONCE: u32 = 16;
/// Between two later ones.
const SLOW: Duration = Duration::from_millis(200);
/// Changes that one report covers at most: a flood of them must end.
const COVERED: usize = 4_096;
/// Between two attempts to renew a broken subscription.
const RENEW: Duration = Duration::from_secs(5);

/// Notice of changes to links, addresses, routes, rules and queueing disciplines. It comes at once, as a new interface has
/// no programs until then, and this host's stack refuses the relayed connections that come in by it. It comes ever more
/// slowly where changes do not end.
pub struct Changes {
    subscription: Subscription,
    /// A change has not been reported yet.
    pending: bool,
    pace: Pace,
    /// Not before this time is a broken subscription renewed.
    renew_at: Option<Instant>,
}

/// The times of reports.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Reports of the present wave.
    reports: u32,
    latest_change: Option<Instant>,
    /// The last report, while the caller is busy with it.
    reported: Option<Instant>,
    /// No report before this time.
    rest_until: Option<Instant>,
}

impl Pace {
    fn changed(&mut self, now: Instant) {
        if self.latest_change.is_some_and(|latest| now > latest + CALM) {
            self.reports = 0;
        }
        self.latest_change = Some(now);
    }

    fn reported(&mut self, now: Instant) {
        self.reports = self.reports.saturating_add(1);
        self.reported = Some(now);
    }

    /// The caller has done its work after the last report, and rests for as long as that took, at least.
    fn done(&mut self, now: Instant) {
        if let Some(reported) = self.reported.take() {
            let took = now - reported;
            let rest = if self.reports < AT_ONCE { took } else { took.max(SLOW) };
            self.rest_until = Some(now + rest);
        }
    }

    /// The time of the next report of a change at `now`.
    fn due(&self, now: Instant) -> Instant {
        self.rest_until.map_or(now, |until| until.max(now))
    }
}

struct Subscription {
    messages: BoxStream<'static, ()>,
    _driver: JoinSet<()>,
}

impl Subscription {
    fn open() -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Nexthop,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Tc,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)
            .context("failed to subscribe to changes of interfaces and routes")?;
        Ok(Self { messages: messages.map(|_| ()).boxed(), _driver: [connection].into_iter().collect() })
    }

    /// Takes a change that has been told by now; `false` without one. The end of the stream shows at the next wait.
    fn is_told(&mut self) -> bool {
        matches!(self.messages.next().now_or_never(), Some(Some(())))
    }
}

impl Changes {
    /// Subscribes, in the network namespace of the calling thread; must run inside the tokio runtime.
    pub fn subscribe() -> Result<Self> {
        Ok(Self {
            subscription: Subscription::open()?,
            pending: false,
            pace: Pace::default(),
            renew_at: None,
        })
    }

    /// Waits for a change. One report covers all changes until it comes. No change is lost between two calls, nor when the
    /// future is dropped.
    ///
    /// Fails when the subscription broke and cannot be renewed; the next call waits a while and tries again.
    pub async fn next(&mut self) -> Result<()> {
        self.pace.done(Instant::now());
        if let Some(at) = self.renew_at {
            sleep_until(at.into()).await;
        }
        if !self.pending {
            if self.subscription.messages.next().await.is_none() {
                // Nobody knows about changes until the next subscription, so this counts as one.
                self.renew_at = Some(Instant::now() + RENEW);
                self.subscription = Subscription::open()?;
                self.renew_at = None;
            }
            self.pending = true;
            self.pace.changed(Instant::now());
        }
        sleep_until(self.pace.due(Instant::now()).into()).await;
        let covered = (0..COVERED).take_while(|_| self.subscription.is_told()).count();
        let now = Instant::now();
        if covered > 0 {
            self.pace.changed(now);
        }
        self.pending = false;
        self.pace.reported(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_at_once_and_ever_more_slowly() {
        let start = Instant::now();
        let ms = |count| start + Duration::from_millis(count);
        let mut pace = Pace::default();
        // A change in each millisecond, and work of 2 ms after each report.
        let (mut reports, mut now) = (Vec::new(), 0);
        while now < 1_000 {
            pace.changed(ms(now));
            now = pace.due(ms(now)).duration_since(start).as_millis() as u64;
            pace.reported(ms(now));
            reports.push(now);
            pace.done(ms(now + 2));
            now += 2;
        }
        assert_eq!(reports[..4], [0, 4, 8, 12]);
        assert_eq!(reports[15..], [60, 262, 464, 666, 868, 1_070]);
        // Later ones are another wave.
        pace.changed(ms(3_000));
        assert_eq!((pace.due(ms(3_000)), pace.reports), (ms(3_000), 0));
    }
}
