//! The sealed socket in the form in which chitchat opens it.

use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};

use super::link::{ChitchatMessageFrom, Link};
use super::seal::DATAGRAM;

/// What chitchat opens its socket from: the link, bound long before.
pub(super) struct SealedTransport(pub(super) Arc<Link>);

struct SealedSocket {
    link: Arc<Link>,
    buffer: Box<[u8]>,
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> Result<Box<dyn Socket>> {
        // One byte more than the longest datagram, so that a longer one is seen to be longer.
        let buffer = vec![0; DATAGRAM + 1].into_boxed_slice();
        Ok(Box::new(SealedSocket { link: Arc::clone(&self.0), buffer }))
    }
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> Result<()> {
        self.link.send(to, &message.serialize_to_vec()).await;
        Ok(())
    }

    async fn recv(&mut self) -> Result<ChitchatMessageFrom> {
        let received = self.link.receive(&mut self.buffer).await;
        #[cfg(test)]
        anyhow::ensure!(!self.link.breaks.swap(false, Relaxed), "broken by a test");
        Ok(received)
    }
}
