//! Questions to rtnetlink that wait for the kernel's answer, microseconds each: they need no runtime, so that
//! `balancer uninstall` can ask them too.

use std::io;

use anyhow::{Context as _, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// `netlink_dump` fills at most 32 KiB at a time, and no more than the last `recv` offered.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Bytes of a message's header.
const HEADER: usize = 16;

/// An rtnetlink socket, in the network namespace in which it was opened.
pub struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    pub fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().context("failed to open a netlink socket for interfaces and routes")?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Every record of the kind that `question` asks for.
    pub fn list(&mut self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(question, NLM_F_DUMP)
    }

    /// Asks for one record. The error has the kernel's number.
    pub fn ask(&mut self, question: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.exchange(question, NLM_F_ACK)?.pop())
    }

    fn exchange(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        message.finalize();
        let mut request = vec![0; message.buffer_len()];
        message.serialize(&mut request);
        uninterrupted(|| self.socket.send(&request, 0))?;

        let mut answers = Vec::new();
        loop {
            self.buffer.clear();
            let length = uninterrupted(|| self.socket.recv(&mut self.buffer, libc::MSG_TRUNC))?;
            if length == 0 || length > self.buffer.len() {
                return Err(io::Error::other("the answer of rtnetlink is cut short"));
            }
            let mut rest = &self.buffer[..];
            while let Some(length) =
                rest.first_chunk::<4>().map(|length| u32::from_ne_bytes(*length) as usize)
            {
                // Messages are padded to four bytes, the last one perhaps not.
                let taken = length.next_multiple_of(4).min(rest.len());
                let Some((message, after)) = rest.split_at_checked(taken).filter(|_| length >= HEADER) else {
                    return Err(io::Error::other("an answer of rtnetlink has no end"));
                };
                rest = after;
                let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
                    Ok(message) => message,
                    Err(error) => {
                        // A newer kernel may describe one device in a way that the library does not know.
                        log::debug!("a message of rtnetlink is not understood: {error}");
                        continue;
                    }
                };
                // The end of the answer to a question that failed midway.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(done) => return outcome(done.code).map(|()| answers),
                    NetlinkPayload::Error(error) => return outcome(error.raw_code()).map(|()| answers),
                    NetlinkPayload::Overrun(_) => {
                        return Err(io::Error::other("rtnetlink lost part of its answer"));
                    }
                    NetlinkPayload::Noop | _ => {}
                }
            }
        }
    }
}

/// The kernel's code at the end of an answer.
pub fn outcome(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_abs())) }
}

/// Repeats a call that a signal has interrupted.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
