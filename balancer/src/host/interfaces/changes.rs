//! Word of changes to interfaces, addresses and routes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream::BoxStream};
use rtnetlink::MulticastGroup;
use tokio::{
    task::JoinHandle,
    time::{sleep_until, timeout_at},
};

/// A wave of changes counts as over when nothing has come for this long.
pub(super) const QUIET: Duration = Duration::from_millis(200);
/// Between two attempts to renew a subscription that broke.
const RENEW: Duration = Duration::from_secs(5);

/// A host whose routes never come to rest is told of changes this often.
const LONGEST_WAVE: Duration = Duration::from_secs(2);

/// Word of changes to links, addresses and routes.
#[derive(Debug)]
pub struct Changes {
    subscription: Subscription,
    /// The first and the latest change of a wave that has not ended.
    wave: Option<(Instant, Instant)>,
    /// When a subscription that broke is renewed at the earliest.
    renew_at: Option<Instant>,
}

struct Subscription {
    messages: BoxStream<'static, ()>,
    driver: JoinHandle<()>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Subscription").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Subscription {
    fn open() -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)
            .context("failed to subscribe to changes of interfaces and routes")?;
        Ok(Self { messages: messages.map(|_| ()).boxed(), driver: tokio::spawn(connection) })
    }
}

impl Changes {
    /// Subscribes, in the network namespace of the calling thread; must run inside the tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the subscription.
    pub fn subscribe() -> Result<Self> {
        Ok(Self { subscription: Subscription::open()?, wave: None, renew_at: None })
    }

    /// Waits for a wave of changes to end. Nothing is lost between two calls, nor when a wait is given up.
    ///
    /// # Errors
    /// When the subscription broke and cannot be renewed.
    pub async fn next(&mut self) -> Result<()> {
        if let Some(at) = self.renew_at {
            sleep_until(at.into()).await;
        }
        loop {
            let message = self.subscription.messages.next();
            let message = match self.wave {
                None => message.await,
                Some((_, latest)) => match timeout_at((latest + QUIET).into(), message).await {
                    Ok(message) => message,
                    Err(_) => break,
                },
            };
            if message.is_none() {
                // What happened meanwhile is unknown: that is a change.
                self.renew_at = Some(Instant::now() + RENEW);
                self.subscription = Subscription::open()?;
                self.renew_at = None;
                break;
            }
            let now = Instant::now();
            let (first, _) = *self.wave.get_or_insert((now, now));
            self.wave = Some((first, now));
            if now.duration_since(first) >= LONGEST_WAVE {
                break;
            }
        }
        self.wave = None;
        Ok(())
    }
}
