//! The netlink messages of `sock_diag`: a request out, its answers in.

use std::{io, ops::RangeInclusive};

use anyhow::{Context as _, Result, ensure};
use netlink_packet_core::{
    DecodeError, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator, Parseable as _,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::{Activity, Family, State};
use crate::host::netlink::{outcome, uninterrupted};

/// Bytes of `struct inet_diag_msg`; attributes follow.
const HEADER: usize = 72;
/// The attribute that holds a `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;

/// `netlink_dump` fills at most 32 KiB at a time, and no more than the last `recv` offered.
const RECEIVE_BUFFER: usize = 64 << 10;

/// The kernel sends a cookie as two words, the lower one first on hosts of either byte order (`sock_diag_save_cookie`).
pub(super) fn cookie_to_u64(cookie: [u8; 8]) -> u64 {
    swap_words(u64::from_ne_bytes(cookie))
}

/// The inverse of [`cookie_to_u64`].
pub(super) fn cookie_from_u64(cookie: u64) -> [u8; 8] {
    swap_words(cookie).to_ne_bytes()
}

fn swap_words(cookie: u64) -> u64 {
    if cfg!(target_endian = "big") { cookie.rotate_left(32) } else { cookie }
}

#[derive(Debug)]
pub(super) struct Query {
    message_type: u16,
    flags: u16,
    request: InetRequest,
    attributes: Vec<u8>,
}

impl Query {
    /// Lists the sockets with a local port in one of `ports`, which must not be empty.
    pub(super) fn dump(family: Family, ports: &[RangeInclusive<u16>], states: &[State]) -> Self {
        let bits = states.iter().fold(0, |bits, state| bits | 1_u32 << *state as u8);
        let id = match family {
            Family::V4 => SocketId::new_v4(),
            Family::V6 => SocketId::new_v6(),
        };
        Self {
            message_type: SOCK_DIAG_BY_FAMILY,
            flags: NLM_F_REQUEST | NLM_F_DUMP,
            request: request(family, StateFlags::from_bits_retain(bits), id),
            attributes: bytecode_attribute(&port_filter(ports)),
        }
    }

    /// Asks for the state of the socket with exactly this identity, `struct tcp_info` included.
    pub(super) fn info(family: Family, id: SocketId) -> Self {
        let request = request(family, StateFlags::all(), id);
        Self {
            message_type: SOCK_DIAG_BY_FAMILY,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            request: InetRequest { extensions: ExtensionFlags::INFO, ..request },
            attributes: Vec::new(),
        }
    }

    /// Closes the socket with exactly this identity.
    pub(super) fn destroy(family: Family, id: SocketId) -> Self {
        Self {
            message_type: SOCK_DESTROY,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            request: request(family, StateFlags::all(), id),
            attributes: Vec::new(),
        }
    }
}

fn request(family: Family, states: StateFlags, socket_id: SocketId) -> InetRequest {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id }
}

/// A filter program for the kernel that accepts local ports in any of `ranges`.
///
/// Instructions are `{code: u8, yes: u8, no: u16}`; `yes` and `no` are distances in bytes from the instruction. A program
/// accepts by landing on its end, and rejects by landing four bytes behind it (`inet_diag_bc_run`). A comparison takes
/// two slots, the second with the port. Per range:
///
/// ```text
/// S_GE first   no → next range
/// S_LE last    no → next range
/// JMP          → end              (not needed after the last range)
/// ```
fn port_filter(ranges: &[RangeInclusive<u16>]) -> Vec<u8> {
    const NOP: u8 = 0;
    const JMP: u8 = 1;
    const S_GE: u8 = 2;
    const S_LE: u8 = 3;
    const SLOT: u16 = 4;
    const RANGE: u16 = 5 * SLOT;

    fn instruction(program: &mut Vec<u8>, code: u8, yes: u16, no: u16) {
        program.extend([code, yes as u8]);
        program.extend(no.to_ne_bytes());
    }

    let mut program = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        let following = (ranges.len() - index - 1) as u16;
        instruction(&mut program, S_GE, 2 * SLOT, RANGE);
        instruction(&mut program, NOP, 0, *range.start());
        instruction(&mut program, S_LE, 2 * SLOT, RANGE - 2 * SLOT);
        instruction(&mut program, NOP, 0, *range.end());
        if following > 0 {
            // To the end: over itself and the ranges that follow, the last of which has no jump.
            instruction(&mut program, JMP, SLOT, SLOT + following * RANGE - SLOT);
        }
    }
    program
}

fn bytecode_attribute(program: &[u8]) -> Vec<u8> {
    const INET_DIAG_REQ_BYTECODE: u16 = 1;
    let mut attribute = Vec::with_capacity(program.len() + 4);
    attribute.extend((program.len() as u16 + 4).to_ne_bytes());
    attribute.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    attribute.extend(program);
    attribute
}

impl NetlinkSerializable for Query {
    fn message_type(&self) -> u16 {
        self.message_type
    }

    fn buffer_len(&self) -> usize {
        self.request.buffer_len() + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (request, attributes) = buffer.split_at_mut(self.request.buffer_len());
        self.request.emit(request);
        attributes.copy_from_slice(&self.attributes);
    }
}

/// One socket in an answer. Of its attributes only `struct tcp_info` is read: a kernel may send ones that nobody here
/// knows.
pub(super) struct Reply {
    pub(super) header: InetResponseHeader,
    /// If it was asked for, and the kernel is new enough.
    pub(super) activity: Option<Activity>,
}

impl NetlinkDeserializable for Reply {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let header = InetResponseHeader::parse(payload)?;
        let attributes = NlasIterator::new(payload.get(HEADER..).unwrap_or_default());
        let info = attributes.flatten().find(|attribute| attribute.kind() == INET_DIAG_INFO);
        let activity = info.and_then(|info| activity(&header, info.value()));
        Ok(Self { header, activity })
    }
}

/// Reads `struct tcp_info` (include/uapi/linux/tcp.h).
fn activity(header: &InetResponseHeader, info: &[u8]) -> Option<Activity> {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECEIVED: usize = 52;
    const BYTES_ACKED: usize = 120;
    const BYTES_RECEIVED: usize = 128;
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    Some(Activity {
        queued: header.recv_queue != 0 || header.send_queue != 0,
        rest_ms: word(LAST_DATA_SENT)?.min(word(LAST_DATA_RECEIVED)?),
        bytes: long(BYTES_ACKED)?.wrapping_add(long(BYTES_RECEIVED)?),
    })
}

/// A netlink socket and the number of the last request.
#[derive(Debug)]
pub(super) struct Channel {
    /// Absent after an error: answers to the failed request may still be queued in it.
    socket: Option<Socket>,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    pub(super) fn open() -> Result<Self> {
        Ok(Self { socket: Some(connect()?), sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends `query` and hands each socket of the answer to `each`. If the kernel answers an error, its root cause is an
    /// [`io::Error`] with that number.
    pub(super) fn exchange(&mut self, query: Query, each: impl FnMut(&Reply) -> Result<()>) -> Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect()?,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let answer = converse(&socket, query, self.sequence, &mut self.buffer, each)?;
        self.socket = Some(socket);
        Ok(answer?)
    }
}

fn connect() -> Result<Socket> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(socket)
    };
    open().context("failed to open a netlink socket for sock_diag (CONFIG_INET_DIAG)")
}

/// An outer error leaves the socket in an unknown state; an inner one is the kernel's complete answer.
fn converse(
    socket: &Socket,
    query: Query,
    sequence: u32,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&Reply) -> Result<()>,
) -> Result<io::Result<()>> {
    let mut header = NetlinkHeader::default();
    header.flags = query.flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(query));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    uninterrupted(|| socket.send(&request, 0)).context("failed to ask sock_diag")?;

    loop {
        buffer.clear();
        let length = uninterrupted(|| socket.recv(buffer, libc::MSG_TRUNC))
            .context("failed to read the answer of sock_diag")?;
        ensure!(
            length <= buffer.len(),
            "sock_diag sent {length} bytes at once, and only {RECEIVE_BUFFER} fit"
        );
        ensure!(length > 0, "sock_diag closed the netlink socket");
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<Reply>::deserialize(rest)
                .context("failed to read a message of sock_diag")?;
            // Messages are padded to four bytes, the last one perhaps not.
            let taken = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            ensure!(taken > 0, "sock_diag sent an empty message");
            rest = &rest[taken..];
            if message.header.sequence_number != sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(reply) => each(&reply)?,
                NetlinkPayload::Done(done) => return Ok(outcome(done.code)),
                NetlinkPayload::Error(error) => return Ok(outcome(error.raw_code())),
                NetlinkPayload::Overrun(_) => anyhow::bail!("sock_diag lost part of its answer"),
                NetlinkPayload::Noop | _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_survive_the_round_trip() {
        for cookie in [0, 1, u64::from(u32::MAX), 0x0123_4567_89ab_cdef, u64::MAX] {
            assert_eq!(cookie_to_u64(cookie_from_u64(cookie)), cookie);
        }
    }

    /// The kernel's interpreter, as in `inet_diag_bc_run`.
    fn accepts(program: &[u8], port: u16) -> bool {
        let (mut at, end) = (0, program.len());
        while at < end {
            let no = |at: usize| u16::from_ne_bytes([program[at + 2], program[at + 3]]);
            let yes = match program[at] {
                0 => true,
                1 => false,
                2 => port >= no(at + 4),
                3 => port <= no(at + 4),
                other => panic!("instruction {other}"),
            };
            at += if yes { usize::from(program[at + 1]) } else { usize::from(no(at)) };
        }
        at == end
    }

    #[test]
    fn the_filter_accepts_exactly_the_ranges() {
        for ranges in [
            vec![17070..=17070],
            vec![17070..=17070, 17080..=17095],
            vec![0..=0, 5..=9, 65535..=65535],
            vec![1..=10, 5..=20, 7..=8, 40..=50],
        ] {
            let program = port_filter(&ranges);
            for port in 0..=u16::MAX {
                let expected = ranges.iter().any(|range| range.contains(&port));
                assert_eq!(accepts(&program, port), expected, "{ranges:?} {port}");
            }
        }
    }
}
