//! Notice that the count has changed: one wake of the agent for each time that it asks ([`super::Maps::await_news`]).

use std::io;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

pub struct News(AsyncFd<RingBuf<MapData>>);

impl News {
    /// Reads the ring buffer `map`; must run inside the tokio runtime.
    pub(super) fn open(map: Map) -> Result<Self> {
        let ring = RingBuf::try_from(map).context("failed to open the ring buffer")?;
        #[expect(
            deprecated,
            reason = "unsound for types that change their descriptor, which a `RingBuf` does not"
        )]
        let ring = AsyncFd::with_interest(ring, Interest::READABLE);
        Ok(Self(ring.context("failed to wait for the ring buffer")?))
    }

    /// Waits until the count has changed.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut any = false;
            while ring.next().is_some() {
                any = true;
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}
