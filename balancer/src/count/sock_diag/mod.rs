//! TCP sockets as the kernel's `sock_diag` shows them: count them, close them, borrow a listener.
//!
//! Both address families are always asked: a `[::]` listener holds its IPv4 clients as v4-mapped IPv6 sockets, which a
//! dump of `AF_INET` does not show. A dump is a walk over a living table, not a snapshot: sockets that come or go while
//! it runs may or may not be in it, none is in it twice.

mod holders;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    ops::RangeInclusive,
};

use anyhow::{Context as _, Result, bail, ensure};
pub use holders::Listener;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_sock_diag::inet::{InetResponseHeader, SocketId};

/// The address family of the socket itself; an IPv6 socket may well carry IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

/// A TCP state, with the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "RFC 9293 section 3.3.2 says what each one is")]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl State {
    /// Open, or closed by the peer only: what the server still has to attend to.
    pub const IN_USE: [Self; 2] = [Self::Established, Self::CloseWait];

    /// Every state of a full socket that had completed its handshake, until its last segment is acknowledged.
    pub const AFTER_HANDSHAKE: [Self; 6] =
        [Self::Established, Self::CloseWait, Self::FinWait1, Self::FinWait2, Self::LastAck, Self::Closing];

    fn from_kernel(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // 12 is NEW_SYN_RECV, the request socket of a handshake in progress.
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }
}

/// One TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Socket {
    /// The kernel's name for the socket, never given to another one until the next boot.
    pub cookie: u64,
    /// Own address; v4-mapped ones are given as IPv4.
    pub local: SocketAddr,
    /// The peer's address; v4-mapped ones are given as IPv4.
    pub remote: SocketAddr,
    /// The state at the moment of the dump.
    pub state: State,
    /// The inode that `/proc/PID/fd` shows; 0 while no process holds the socket (not accepted yet, or closed already).
    pub inode: u32,
    /// The family of the socket itself.
    pub family: Family,
    /// The interface that the socket is bound to, or 0.
    pub interface: u32,
}

impl Socket {
    fn from_wire(header: &InetResponseHeader) -> Result<Self> {
        let family = match header.family {
            netlink_packet_sock_diag::AF_INET => Family::V4,
            netlink_packet_sock_diag::AF_INET6 => Family::V6,
            other => bail!("sock_diag answered a socket of address family {other}"),
        };
        let id = &header.socket_id;
        let state = State::from_kernel(header.state)
            .with_context(|| format!("sock_diag answered TCP state {}, which is unknown", header.state))?;
        Ok(Self {
            cookie: wire::cookie_to_u64(id.cookie),
            local: canonical(id.source_address, id.source_port, id.interface_id),
            remote: canonical(id.destination_address, id.destination_port, id.interface_id),
            state,
            inode: header.inode,
            family,
            interface: id.interface_id,
        })
    }

    fn to_id(&self) -> SocketId {
        let address = |address: IpAddr| match (self.family, address) {
            (Family::V6, IpAddr::V4(v4)) => IpAddr::V6(v4.to_ipv6_mapped()),
            (_, address) => address,
        };
        SocketId {
            source_port: self.local.port(),
            destination_port: self.remote.port(),
            source_address: address(self.local.ip()),
            destination_address: address(self.remote.ip()),
            interface_id: self.interface,
            cookie: wire::cookie_from_u64(self.cookie),
        }
    }
}

fn canonical(address: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, port, 0, interface).into(),
        address @ (IpAddr::V4(_) | IpAddr::V6(_)) => (address, port).into(),
    }
}

/// A conversation with the kernel's `sock_diag`, in the network namespace in which it was opened.
///
/// Every call blocks for as long as the kernel takes to answer: milliseconds for thousands of sockets.
#[derive(Debug)]
pub struct SockDiag {
    channel: wire::Channel,
}

impl SockDiag {
    /// Opens the conversation.
    ///
    /// # Errors
    /// When the kernel has no `sock_diag`.
    pub fn open() -> Result<Self> {
        Ok(Self { channel: wire::Channel::open()? })
    }

    /// All TCP sockets of both families whose local port lies in `ports` and whose state is in `states`.
    ///
    /// # Errors
    /// When the kernel refuses or its answer cannot be read.
    pub fn dump(&mut self, ports: &[RangeInclusive<u16>], states: &[State]) -> Result<Vec<Socket>> {
        let ports: Vec<_> = ports.iter().filter(|range| !range.is_empty()).cloned().collect();
        let mut sockets = Vec::new();
        if ports.is_empty() || states.is_empty() {
            return Ok(sockets);
        }
        // The walk resumes by position: a socket inserted before it shows one socket twice.
        let mut seen = HashSet::new();
        for family in [Family::V4, Family::V6] {
            let query = wire::Query::dump(family, &ports, states);
            self.channel
                .exchange(query, |header| {
                    let socket = Socket::from_wire(header)?;
                    if seen.insert(socket.cookie) {
                        sockets.push(socket);
                    }
                    Ok(())
                })
                .with_context(|| format!("failed to list TCP sockets ({family:?}) by sock_diag"))?;
        }
        Ok(sockets)
    }

    /// Closes exactly this socket: its owner sees `ECONNABORTED`, its peer a RST. `false`: it had gone already.
    ///
    /// # Errors
    /// When it is a listener, which is never closed, or the kernel refuses.
    pub fn destroy(&mut self, socket: &Socket) -> Result<bool> {
        ensure!(socket.state != State::Listen, "refused to close the listening socket on {}", socket.local);
        let outcome = self.channel.exchange(wire::Query::destroy(socket.family, socket.to_id()), |_| Ok(()));
        let Err(error) = outcome else { return Ok(true) };
        match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            // ENOENT: no socket has these addresses; ESTALE: another one has; ENOTCONN: closed under our hands.
            Some(libc::ENOENT | libc::ESTALE | libc::ENOTCONN) => Ok(false),
            Some(libc::EPERM) => Err(error.context("closing sockets needs CAP_NET_ADMIN")),
            Some(libc::EOPNOTSUPP) => {
                Err(error.context("this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY is off)"))
            }
            _ => Err(error
                .context(format!("failed to close the connection of {} to {}", socket.remote, socket.local))),
        }
    }

    /// The listening sockets on `port`.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub fn listeners(&mut self, port: u16) -> Result<Vec<Socket>> {
        self.dump(&[port..=port], &[State::Listen])
    }

    /// Duplicates of the listening sockets on `port`, taken from the processes that hold them; empty if nobody listens.
    ///
    /// Every descriptor was checked to be the very socket. It keeps the listener open after its owner has closed it, so
    /// hold it no longer than needed.
    ///
    /// # Errors
    /// When a listener is there and cannot be had; the message names the process and what is missing.
    pub fn listener_fds(&mut self, port: u16) -> Result<Vec<Listener>> {
        // Whoever held it may have exited in between; then the next look no longer lists it.
        let mut retries = 2;
        loop {
            let listeners = self.listeners(port)?;
            match holders::duplicate(&listeners) {
                Err(_) if retries > 0 => retries -= 1,
                outcome => {
                    return outcome.with_context(|| format!("failed to borrow the listener on port {port}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
        os::fd::OwnedFd,
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use rustix::net::sockopt::socket_cookie;

    use super::{testing::in_namespace, *};

    const STATES: [State; 1] = [State::Established];

    fn listen(address: impl Into<SocketAddr>, v6only: bool) -> TcpListener {
        let address = address.into();
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(v6only).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(4096).unwrap();
        socket.into()
    }

    fn raise_nofile() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    }

    /// `count` connections to `to`, each with its accepted end.
    fn connect(listener: &TcpListener, to: SocketAddr, count: usize) -> Vec<(TcpStream, TcpStream)> {
        (0..count)
            .map(|_| {
                let client = TcpStream::connect(to).unwrap();
                let (server, _) = listener.accept().unwrap();
                client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                (client, server)
            })
            .collect()
    }

    fn sorted(mut addresses: Vec<(SocketAddr, SocketAddr)>) -> Vec<(SocketAddr, SocketAddr)> {
        addresses.sort();
        addresses
    }

    #[test]
    fn three_thousand_connections_are_listed_exactly_and_closed_one_by_one() {
        raise_nofile();
        in_namespace(|| {
            let port = 17070;
            let dual = listen((Ipv6Addr::UNSPECIFIED, port), false);
            let other = listen((Ipv4Addr::LOCALHOST, 17100), false);
            let v4: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
            let v6: SocketAddr = (Ipv6Addr::LOCALHOST, port).into();
            let mut connections = connect(&dual, v4, 1500);
            connections.extend(connect(&dual, v6, 1500));
            let _noise = connect(&other, other.local_addr().unwrap(), 50);

            let mut diag = SockDiag::open().unwrap();
            let started = Instant::now();
            let sockets = diag.dump(&[port..=port], &STATES).unwrap();
            let took = started.elapsed();
            eprintln!("{} sockets listed in {took:?}", sockets.len());
            assert!(took < Duration::from_millis(500), "{took:?}");

            let canonical =
                |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            let expected = connections
                .iter()
                .map(|(client, server)| {
                    (canonical(client.local_addr().unwrap()), server.local_addr().unwrap())
                })
                .map(|(remote, local)| (remote, canonical(local)))
                .collect();
            let found = sockets.iter().map(|socket| (socket.remote, socket.local)).collect();
            assert_eq!(sorted(found), sorted(expected));
            assert!(sockets.iter().all(|socket| socket.family == Family::V6 && socket.inode != 0));
            let cookies: HashSet<_> =
                connections.iter().map(|(_, server)| socket_cookie(server).unwrap()).collect();
            assert_eq!(sockets.iter().map(|socket| socket.cookie).collect::<HashSet<_>>(), cookies);

            // Every third one.
            let started = Instant::now();
            let doomed: Vec<_> = sockets.iter().step_by(3).collect();
            for socket in &doomed {
                assert!(diag.destroy(socket).unwrap());
            }
            eprintln!("{} sockets closed in {:?}", doomed.len(), started.elapsed());
            let doomed_cookies: HashSet<_> = doomed.iter().map(|socket| socket.cookie).collect();
            for (client, server) in &mut connections {
                let mut byte = [0];
                if doomed_cookies.contains(&socket_cookie(&*server).unwrap()) {
                    assert_eq!(server.read(&mut byte).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
                    assert_eq!(client.read(&mut byte).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
                } else {
                    client.set_nonblocking(true).unwrap();
                    assert_eq!(client.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
                }
            }
            assert_eq!(diag.dump(&[port..=port], &STATES).unwrap().len(), 2000);
            assert!(!diag.destroy(doomed[0]).unwrap(), "gone already");

            let listeners = diag.listeners(port).unwrap();
            assert_eq!(listeners.len(), 1, "the listener survives: {listeners:?}");
            assert!(diag.destroy(&listeners[0]).unwrap_err().to_string().contains("listening socket"));
            connect(&dual, v4, 1);
        });
    }

    type Row<'a> = (&'a str, &'a [RangeInclusive<u16>], &'a [u16]);

    #[test]
    fn several_port_ranges_are_filtered_by_the_kernel() {
        in_namespace(|| {
            let ports: Vec<u16> = vec![17070, 17079, 17080, 17087, 17095, 17096];
            let servers: Vec<_> = ports
                .iter()
                .map(|&port| {
                    let listener = listen((Ipv4Addr::LOCALHOST, port), false);
                    let connection = connect(&listener, listener.local_addr().unwrap(), 1);
                    (listener, connection)
                })
                .collect();
            let mut diag = SockDiag::open().unwrap();
            #[expect(clippy::reversed_empty_ranges, reason = "an empty range is a row of this table")]
            let rows: [Row; 6] = [
                ("nothing", &[], &[]),
                ("an empty range", &[2..=1], &[]),
                ("one port", &[17070..=17070], &[17070]),
                ("port and range", &[17070..=17070, 17080..=17095], &[17070, 17080, 17087, 17095]),
                ("three ranges", &[1..=17079, 17087..=17087, 17096..=65535], &[17070, 17079, 17087, 17096]),
                ("ranges that overlap", &[17079..=17090, 17080..=17095], &[17079, 17080, 17087, 17095]),
            ];
            for (name, ranges, expected) in rows {
                let mut found: Vec<_> = diag
                    .dump(ranges, &STATES)
                    .unwrap()
                    .iter()
                    .map(|socket| socket.local.port())
                    .filter(|port| ports.contains(port))
                    .collect();
                found.sort_unstable();
                assert_eq!(found, expected, "{name}");
            }
            drop(servers);
        });
    }

    #[test]
    fn states_are_told_apart() {
        in_namespace(|| {
            let listener = listen((Ipv4Addr::LOCALHOST, 17070), false);
            let mut pairs = connect(&listener, listener.local_addr().unwrap(), 3);
            let (client, half_closed) = pairs.pop().unwrap();
            drop(client);
            let (other, closed_here) = pairs.pop().unwrap();
            drop(closed_here);
            let mut diag = SockDiag::open().unwrap();
            let mut count = |states: &[State]| diag.dump(&[17070..=17070], states).unwrap().len();
            let deadline = Instant::now() + Duration::from_secs(2);
            while count(&[State::FinWait1]) > 0 {
                assert!(Instant::now() < deadline, "the FIN is not acknowledged");
            }
            assert_eq!(count(&[State::Established]), 1);
            assert_eq!(count(&[State::CloseWait]), 1);
            assert_eq!(count(&[State::FinWait2]), 1);
            assert_eq!(count(&[State::Listen]), 1);
            assert_eq!(count(&State::IN_USE), 2);
            assert_eq!(count(&State::AFTER_HANDSHAKE), 3);
            drop((half_closed, other));
        });
    }

    #[test]
    fn a_listener_of_another_process_is_borrowed() {
        in_namespace(|| {
            let held = listen((Ipv6Addr::UNSPECIFIED, 17070), true);
            let cookie = socket_cookie(&held).unwrap();
            let mut holder =
                Command::new("sleep").arg("60").stdin(Stdio::from(OwnedFd::from(held))).spawn().unwrap();
            let own = listen((Ipv4Addr::UNSPECIFIED, 17070), false);

            let mut diag = SockDiag::open().unwrap();
            let started = Instant::now();
            let mut found = diag.listener_fds(17070).unwrap();
            eprintln!("listeners found in {:?}", started.elapsed());
            let holder_id = holder.id();
            holder.kill().unwrap();
            holder.wait().unwrap();
            found.sort_by_key(|listener| listener.family == Family::V6);
            let [v4, v6] = &found[..] else { panic!("{found:?}") };
            assert_eq!((v4.family, v4.v6only, v4.cookie), (Family::V4, false, socket_cookie(&own).unwrap()));
            assert_eq!((v6.family, v6.v6only, v6.cookie), (Family::V6, true, cookie));
            assert_eq!((v4.holder, v6.holder), (std::process::id(), holder_id));

            // The duplicate is the socket: it accepts although its first holder is dead.
            let duplicate = TcpListener::from(v6.fd.try_clone().unwrap());
            let _client = TcpStream::connect((Ipv6Addr::LOCALHOST, 17070)).unwrap();
            duplicate.accept().unwrap();
            assert!(diag.listener_fds(17071).unwrap().is_empty());
        });
    }

    #[test]
    fn a_listener_out_of_reach_is_an_error_that_says_what_is_missing() {
        in_namespace(|| {
            let held = listen((Ipv4Addr::LOCALHOST, 17070), false);
            let mut holder =
                Command::new("sleep").arg("60").stdin(Stdio::from(OwnedFd::from(held))).spawn().unwrap();
            let error = testing::without_capability(rustix::thread::CapabilitySet::SYS_PTRACE, || {
                SockDiag::open().unwrap().listener_fds(17070).map(|found| found.len()).unwrap_err()
            });
            holder.kill().unwrap();
            holder.wait().unwrap();
            let text = format!("{error:#}");
            assert!(text.contains("port 17070") && text.contains("CAP_SYS_PTRACE"), "{text}");
            assert!(text.contains("processes, such as process"), "{text}");
        });
    }

    #[test]
    fn closing_without_privilege_says_what_is_missing() {
        in_namespace(|| {
            let listener = listen((Ipv4Addr::LOCALHOST, 17070), false);
            let _pairs = connect(&listener, listener.local_addr().unwrap(), 1);
            let error = testing::without_capability(rustix::thread::CapabilitySet::NET_ADMIN, || {
                let mut diag = SockDiag::open().unwrap();
                let sockets = diag.dump(&[17070..=17070], &STATES).unwrap();
                diag.destroy(&sockets[0]).unwrap_err()
            });
            assert!(format!("{error:#}").contains("CAP_NET_ADMIN"), "{error:#}");
        });
    }
}
