//! The sealed link in the form in which chitchat opens its socket.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use async_trait::async_trait;
use chitchat::{
    ChitchatMessage, Serializable,
    transport::{Socket, Transport},
};

use super::{host, link::Link, rhythm::Step, seal::DATAGRAM};

/// Hands chitchat the link, which was bound long before.
pub(super) struct SealedTransport(pub(super) Arc<Link>);

struct SealedSocket {
    link: Arc<Link>,
    buffer: Box<[u8]>,
    /// chitchat was given a message, which it has taken in once it asks for the next one.
    handed: bool,
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> Result<Box<dyn Socket>> {
        // One byte more than the longest datagram, so that a longer one does not look like it.
        let buffer = vec![0; DATAGRAM + 1].into_boxed_slice();
        Ok(Box::new(SealedSocket { link: Arc::clone(&self.0), buffer, handed: false }))
    }
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> Result<()> {
        if self.link.rhythm().sends(to, step(&message), host::now()) {
            self.link.send(to, &message.serialize_to_vec()).await;
        }
        Ok(())
    }

    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage)> {
        if std::mem::take(&mut self.handed) {
            self.link.taken_in.notify_one();
        }
        let received = self.link.receive(&mut self.buffer).await;
        self.handed = true;
        self.link.rhythm().receives(received.0, step(&received.1), host::now());
        #[cfg(test)]
        anyhow::ensure!(
            !self.link.breaks.swap(false, std::sync::atomic::Ordering::Relaxed),
            "broken by a test"
        );
        Ok(received)
    }
}

fn step(message: &ChitchatMessage) -> Step {
    match message {
        ChitchatMessage::Syn { .. } => Step::Ask,
        ChitchatMessage::SynAck { .. } | ChitchatMessage::Ack { .. } | ChitchatMessage::BadCluster => {
            Step::Answer
        }
    }
}
