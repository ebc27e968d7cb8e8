//! `sock_diag` against the real kernel.

use std::{
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::net::sockopt::socket_cookie;

use super::*;
use crate::host::{
    privileges::raise_limits,
    testing::{in_namespace, without_capability},
};

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

/// Another process that holds a listener until this is dropped.
struct Holder(Child);

impl Holder {
    fn of(listener: TcpListener) -> Self {
        Self(Command::new("sleep").arg("60").stdin(Stdio::from(OwnedFd::from(listener))).spawn().unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_bytes_and_the_rest_of_a_connection_are_told() {
    use std::io::Write as _;
    for (to, listener) in [
        (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), listen((Ipv4Addr::LOCALHOST, 0), false)),
        (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), listen((Ipv6Addr::UNSPECIFIED, 0), false)),
    ] {
        let port = listener.local_addr().unwrap().port();
        let mut ends = connect(&listener, SocketAddr::new(to.ip(), port), 1);
        let mut diag = SockDiag::open().unwrap();
        let socket = diag.dump(&[port..=port], &STATES).unwrap().pop().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut until = |wanted: &dyn Fn(&Activity) -> bool| loop {
            let activity = diag.activity(&socket).unwrap().unwrap();
            if wanted(&activity) {
                return;
            }
            assert!(Instant::now() < deadline, "{activity:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        ends[0].0.write_all(&[7; 3_000]).unwrap();
        until(&|activity| activity.queued && activity.bytes >= 3_000);
        ends[0].1.read_exact(&mut [0; 3_000]).unwrap();
        until(&|activity| !activity.queued && activity.rest_ms >= 100);
        drop(ends);
        let socket = Socket { cookie: socket.cookie + 1_000_000, ..socket };
        assert_eq!(diag.activity(&socket).unwrap(), None);
    }
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

#[test]
fn the_kernel_tells_of_each_socket_that_ends() {
    in_namespace(|| {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 17070), false);
        for to in [SocketAddr::from((Ipv4Addr::LOCALHOST, 17070)), (Ipv6Addr::LOCALHOST, 17070).into()] {
            let mut ended = Ended::subscribe().unwrap();
            let mut connections = connect(&listener, to, 3);
            let (client, server) = connections.pop().unwrap();
            let cookie = socket_cookie(&server).unwrap();
            assert_eq!(ended.take(), Gone::default());
            drop((client, server));
            let deadline = Instant::now() + Duration::from_secs(5);
            let mut cookies = Vec::new();
            while !cookies.contains(&cookie) {
                assert!(Instant::now() < deadline, "{cookies:?} without {cookie}");
                std::thread::sleep(Duration::from_millis(5));
                let gone = ended.take();
                assert!(!gone.more);
                cookies.extend(gone.cookies);
            }
            let others: Vec<u64> =
                connections.iter().map(|(_, server)| socket_cookie(server).unwrap()).collect();
            assert!(others.iter().all(|other| !cookies.contains(other)));
        }
    });
}

fn sorted(mut addresses: Vec<(SocketAddr, SocketAddr)>) -> Vec<(SocketAddr, SocketAddr)> {
    addresses.sort();
    addresses
}

#[test]
fn three_thousand_connections_are_listed_exactly_and_closed_one_by_one() {
    raise_limits().unwrap();
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

        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let expected = connections
            .iter()
            .map(|(client, server)| (canonical(client.local_addr().unwrap()), server.local_addr().unwrap()))
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
        let holder = Holder::of(held);
        let own = listen((Ipv4Addr::UNSPECIFIED, 17070), false);

        let mut diag = SockDiag::open().unwrap();
        let started = Instant::now();
        let mut found = diag.listener_fds(17070).unwrap();
        eprintln!("listeners found in {:?}", started.elapsed());
        let holder_id = holder.0.id();
        drop(holder);
        found.sort_by_key(|listener| listener.family == Family::V6);
        let [v4, v6] = &found[..] else { panic!("{found:?}") };
        assert_eq!((v4.family, socket_cookie(&v4.fd).unwrap()), (Family::V4, socket_cookie(&own).unwrap()));
        assert_eq!((v6.family, socket_cookie(&v6.fd).unwrap()), (Family::V6, cookie));
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
        let _holder = Holder::of(listen((Ipv4Addr::LOCALHOST, 17070), false));
        let error = without_capability(rustix::thread::CapabilitySet::SYS_PTRACE, || {
            SockDiag::open().unwrap().listener_fds(17070).map(|found| found.len()).unwrap_err()
        });
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
        let error = without_capability(rustix::thread::CapabilitySet::NET_ADMIN, || {
            let mut diag = SockDiag::open().unwrap();
            let sockets = diag.dump(&[17070..=17070], &STATES).unwrap();
            diag.destroy(&sockets[0]).unwrap_err()
        });
        assert!(format!("{error:#}").contains("CAP_NET_ADMIN"), "{error:#}");
    });
}
