//! The sealed link in the form in which chitchat opens its socket.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use async_trait::async_trait;
use chitchat::{
    ChitchatMessage, Serializable,
    transport::{Socket, Transport},
};

use super::{link::Link, seal::DATAGRAM};

/// Hands chitchat the link, which was bound long before.
pub(super) struct SealedTransport(pub(super) Arc<Link>);

struct SealedSocket {
    link: Arc<Link>,
    buffer: Box<[u8]>,
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> Result<Box<dyn Socket>> {
        // One byte more than the longest datagram, so that a longer one does not look like it.
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

    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage)> {
        let received = self.link.receive(&mut self.buffer).await;
        #[cfg(test)]
        anyhow::ensure!(
            !self.link.breaks.swap(false, std::sync::atomic::Ordering::Relaxed),
            "broken by a test"
        );
        Ok(received)
    }
}
