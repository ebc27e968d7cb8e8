//! Notice of changes to interfaces, addresses, routes, rules and hooks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream::BoxStream};
use rtnetlink::MulticastGroup;
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout_at},
};

/// A wave of changes is over after this long without another. Short, as a new interface has no programs meanwhile, and this
/// host's stack refuses the relayed connections that come in by it.
pub(super) const QUIET: Duration = Duration::from_millis(20);
/// The longest wave: if routes never come to rest, a change is reported this often.
const LONGEST_WAVE: Duration = Duration::from_millis(200);
/// Between two attempts to renew a broken subscription.
const RENEW: Duration = Duration::from_secs(5);

/// Notice of changes to links, addresses, routes, rules and queueing disciplines, one for a wave of them.
pub struct Changes {
    subscription: Subscription,
    wave: Option<Wave>,
    /// Not before this time is a broken subscription renewed.
    renew_at: Option<Instant>,
}

/// Changes that follow each other closely, such as those of a service that sets up the network.
#[derive(Clone, Copy, Debug)]
struct Wave {
    first: Instant,
    latest: Instant,
}

impl Wave {
    /// The end of the wave, if no other change comes before.
    fn ends_at(&self) -> Instant {
        (self.latest + QUIET).min(self.first + LONGEST_WAVE)
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
}

impl Changes {
    /// Subscribes, in the network namespace of the calling thread; must run inside the tokio runtime.
    pub fn subscribe() -> Result<Self> {
        Ok(Self { subscription: Subscription::open()?, wave: None, renew_at: None })
    }

    /// Waits for the end of a wave of changes. No change is lost between two calls, nor when the future is dropped.
    ///
    /// Fails when the subscription broke and cannot be renewed; the next call waits a while and tries again.
    pub async fn next(&mut self) -> Result<()> {
        if let Some(at) = self.renew_at {
            sleep_until(at.into()).await;
        }
        loop {
            let message = self.subscription.messages.next();
            let message = match self.wave {
                None => message.await,
                Some(wave) => match timeout_at(wave.ends_at().into(), message).await {
                    Ok(message) => message,
                    Err(_) => break,
                },
            };
            if message.is_none() {
                // Nobody knows about changes until the next subscription, so this counts as one.
                self.renew_at = Some(Instant::now() + RENEW);
                self.subscription = Subscription::open()?;
                self.renew_at = None;
                break;
            }
            let now = Instant::now();
            let wave = self.wave.get_or_insert(Wave { first: now, latest: now });
            wave.latest = now;
            // `timeout_at` prefers a message that is there: a flood of them would never end.
            if now >= wave.ends_at() {
                break;
            }
        }
        self.wave = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_ends_after_a_pause_or_at_its_longest() {
        let start = Instant::now();
        let ms = |count| start + Duration::from_millis(count);
        // First and latest change, and the end.
        let rows = [(0, 0, 20), (0, 15, 35), (0, 180, 200), (0, 195, 200), (0, 300, 200)];
        for (first, latest, end) in rows {
            assert_eq!(Wave { first: ms(first), latest: ms(latest) }.ends_at(), ms(end), "{first} {latest}");
        }
    }
}
