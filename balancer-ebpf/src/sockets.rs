//! The two programs that see sockets: `admit` at the socket look-up, `track` at their changes.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock_ops,
    },
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, generated::bpf_probe_read_kernel},
    macros::{sk_lookup, sock_ops},
    programs::{SkLookupContext, SockOpsContext},
};
use aya_log_ebpf::{info, warn};
use balancer_common::{
    hooks::Tables,
    policy::admission,
    records::{Class, LISTENER_V4, LISTENER_V6, Settings, Tracked, Tuple},
    verdict::Event,
    wire::{Address, Port, Tcp},
};

use crate::{maps, tables::Maps};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
/// Words of a socket that [`is_here`] reads where it must; the loader looks whether they are enough.
const SOCK_WORDS: usize = 8;
/// Constants to the programs, written by the loader, who asks the kernel: what they rule out the verifier does not see.
///
/// Before Linux 5.17 `struct bpf_sk_lookup` ends before `ingress_ifindex` ("invalid bpf_context access off=64 size=4").
#[unsafe(no_mangle)]
static KNOWS_INTERFACE: u32 = 1;
/// Before Linux 5.15 `sock_ops` has no `bpf_get_netns_cookie` ("unknown func bpf_get_netns_cookie#122").
#[unsafe(no_mangle)]
static KNOWS_NETNS: u32 = 1;
/// There: offset of the network namespace's address in `struct sock`.
#[unsafe(no_mangle)]
static SOCK_NET: u32 = 0;
/// There: offset of its inode number in `struct net`.
#[unsafe(no_mangle)]
static NET_INUM: u32 = 0;

/// Every look-up of a listener in this network namespace: the hard limit, and the API's listener
/// for what arrives on a relay port.
#[sk_lookup]
pub fn admit(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // Fields are read one by one before any branch: LLVM merges loads of two branches through a
    // computed context pointer otherwise, which the verifier refuses (all kernels: "dereference of
    // modified ctx ptr").
    // SAFETY: the context is valid for the program's whole run.
    let (family, protocol, port, remote_port, v4, v6) = unsafe {
        (
            (&raw const (*lookup).family).read_volatile(),
            (&raw const (*lookup).protocol).read_volatile(),
            (&raw const (*lookup).local_port).read_volatile() as u16,
            (&raw const (*lookup).remote_port).cast::<u16>().read_volatile(),
            [
                (&raw const (*lookup).remote_ip4).read_volatile(),
                (&raw const (*lookup).local_ip4).read_volatile(),
            ],
            [
                (&raw const (*lookup).remote_ip6[0]).read_volatile(),
                (&raw const (*lookup).remote_ip6[1]).read_volatile(),
                (&raw const (*lookup).remote_ip6[2]).read_volatile(),
                (&raw const (*lookup).remote_ip6[3]).read_volatile(),
                (&raw const (*lookup).local_ip6[0]).read_volatile(),
                (&raw const (*lookup).local_ip6[1]).read_volatile(),
                (&raw const (*lookup).local_ip6[2]).read_volatile(),
                (&raw const (*lookup).local_ip6[3]).read_volatile(),
            ],
        )
    };
    let tables = Maps::new(&ctx);
    let Some(settings) = tables.settings() else { return SK_PASS };
    let probing = maps::PROBING.get(0).copied().unwrap_or(0) != 0;
    if settings.active == 0 || probing || protocol != u32::from(Tcp::PROTOCOL) {
        return SK_PASS;
    }
    let local_port = Port::new(port);
    let relayed = settings.is_relay_port(local_port);
    if local_port != settings.api_port && !relayed {
        return SK_PASS;
    }
    let (remote, local) = if family == AF_INET {
        (Address::from_v4(v4[0]), Address::from_v4(v4[1]))
    } else {
        (Address::from_v6([v6[0], v6[1], v6[2], v6[3]]), Address::from_v6([v6[4], v6[5], v6[6], v6[7]]))
    };
    let key = Tuple { remote, local, remote_port: Port::from_ne(remote_port), local_port };
    if tables.reservation(&key).is_none() {
        if !tables.class_of(&remote).is(Class::Client) {
            return SK_PASS;
        }
        // `ingress` decides for the SYNs on a has_ingress device; what comes without its decision is most likely a
        // stray segment, which is to take no place, except while last ACKs are watched, where it may be a SYN
        // cookie's, and where another `ingress`, or none, may have let it in. It may also be a SYN that `ingress`
        // does not read, or whose port it does not know: one with IP options, or one that the host's own NAT sends
        // here. Where the interface is not known, device 0 stands for all.
        let mut ifindex = 0;
        if constant(&raw const KNOWS_INTERFACE) != 0 {
            // SAFETY: the context is valid for the program's whole run.
            ifindex = unsafe { (&raw const (*lookup).ingress_ifindex).read_volatile() };
        }
        // Nor does `ingress` decide for an address of this host that is not the controller's.
        let has_ingress = tables.device(ifindex).is_some_and(|device| device.has_ingress != 0)
            && tables.class_of(&local).is(Class::Own);
        let now_s = tables.now_s();
        let settled = !settings.in_grace_period(now_s);
        let admitted = if settled && relayed {
            false
        } else if settled && has_ingress && !tables.checks_final_ack(now_s) {
            admission::has_room(&tables, settings)
        } else {
            admission::admit_lookup(&tables, settings, &key)
        };
        if !admitted {
            tables.count(Event::Refused);
            return SK_DROP;
        }
    }
    tables.count(Event::Admitted);
    if !relayed {
        return SK_PASS;
    }
    // A dual-stack listener holds slot 6 only and takes IPv4 as well.
    let first = if family == AF_INET { LISTENER_V4 } else { LISTENER_V6 };
    if maps::LISTENERS.redirect_sk_lookup(&ctx, first, 0).is_err()
        && maps::LISTENERS.redirect_sk_lookup(&ctx, LISTENER_V6, 0).is_err()
    {
        tables.count(Event::NoListener);
        return SK_DROP;
    }
    SK_PASS
}

/// Every change of a TCP socket's state under the cgroup root: the exact count.
#[sock_ops]
pub fn track(ctx: SockOpsContext) -> u32 {
    let tables = Maps::new(&ctx);
    let Some(settings) = tables.settings() else { return 0 };
    let op = ctx.op();
    if settings.active == 0 || !is_here(&ctx, settings) {
        return 0;
    }
    let port = Port::new(ctx.local_port() as u16);
    if port != settings.api_port && !settings.is_relay_port(port) {
        return 0;
    }
    if op == BPF_SOCK_OPS_TCP_LISTEN_CB {
        if port == settings.api_port {
            listening(&ctx);
        }
    } else if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        established(&ctx, &tables, settings, port);
    } else if op == BPF_SOCK_OPS_STATE_CB {
        changed(&ctx, &tables, settings);
    }
    0
}

/// jujud listens: relayed connections go to this socket.
#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let slot = if ctx.family() == AF_INET { LISTENER_V4 } else { LISTENER_V6 };
    // SAFETY: the context is valid for the program's whole run.
    let noted = unsafe { maps::LISTENERS.update(slot, ctx.ops, u64::from(BPF_ANY)) };
    match noted {
        Ok(()) => info!(ctx, "a listener on the API port is there"),
        // MPTCP, for one: Go's own default from 1.24 on.
        Err(error) => info!(ctx, "a listener on the API port is there, and in no map: error {}", error),
    }
}

/// A handshake is complete.
#[inline(always)]
fn established(ctx: &SockOpsContext, tables: &Maps, settings: &Settings, port: Port) {
    let (remote, local) = ends(ctx.ops);
    // SAFETY: the context is valid for the program's whole run.
    let remote_port = unsafe { (&raw const (*ctx.ops).remote_port).read_volatile() };
    // The kernel hands the port out as a 32-bit word in network order, in its upper half.
    let key =
        Tuple { remote, local, remote_port: Port::new(u32::from_be(remote_port) as u16), local_port: port };
    let client = tables.class_of(&remote).is(Class::Client);
    // SAFETY: helper calls on the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let tracked = Tracked { since_s: tables.now_s(), client: u8::from(client), seeded: 0, pad: [0; 2] };
    if maps::TRACKED.insert(cookie, tracked, u64::from(BPF_ANY)).is_err()
        || ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_err()
    {
        tables.count(Event::Untracked);
        warn!(ctx, "a connection cannot be counted");
        return;
    }
    if client {
        admission::establish(tables, settings, &key);
    } else {
        tables.budget(|budget| budget.exempt = budget.exempt.wrapping_add(1));
    }
}

/// A counted socket changes its state.
#[inline(always)]
fn changed(ctx: &SockOpsContext, tables: &Maps, settings: &Settings) {
    const ESTABLISHED: u32 = 1;
    const CLOSE_WAIT: u32 = 8;
    let (remote, _) = ends(ctx.ops);
    let state = ctx.arg(1);
    if state == ESTABLISHED || state == CLOSE_WAIT {
        return;
    }
    // SAFETY: a helper call on the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: copied at once.
    let Some(tracked) = unsafe { maps::TRACKED.get(cookie) }.copied() else { return };
    // A seeded one that an older version's program had marked is not in this one's count: the agent sees to it.
    if tracked.seeded != 0 || maps::TRACKED.remove(cookie).is_err() {
        return;
    }
    if tracked.client == 0 {
        tables.budget(|budget| budget.exempt = budget.exempt.wrapping_sub(1));
    } else {
        admission::close(tables, settings, &remote);
    }
}

/// Whether the socket is of the network namespace that this program counts for: the cgroup root
/// holds those of all.
#[inline(always)]
fn is_here(ctx: &SockOpsContext, settings: &Settings) -> bool {
    if constant(&raw const KNOWS_NETNS) != 0 {
        // SAFETY: a helper call on the context.
        return unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == settings.netns };
    }
    let (mut head, mut inode) = ([0_u64; SOCK_WORDS], 0_u32);
    // SAFETY: the helper fills as many octets as it is told, and fails where an address is none.
    unsafe {
        // The verifier wants the pointer as it is; the offset is for what was read.
        let socket = (*ctx.ops).__bindgen_anon_2.sk;
        if socket.is_null()
            || bpf_probe_read_kernel(head.as_mut_ptr().cast(), size_of_val(&head) as u32, socket.cast()) != 0
        {
            return false;
        }
        let net = head[constant(&raw const SOCK_NET) as usize / 8 % SOCK_WORDS];
        let address = net.wrapping_add(u64::from(constant(&raw const NET_INUM)));
        if bpf_probe_read_kernel((&raw mut inode).cast(), 4, address as *const core::ffi::c_void) != 0 {
            return false;
        }
    }
    u64::from(inode) == settings.netns
}

/// One of the loader's constants.
#[inline(always)]
fn constant(word: *const u32) -> u32 {
    // SAFETY: a static of this program; volatile, as the compiler is not to take the value in the object for granted.
    unsafe { word.read_volatile() }
}

/// Both addresses of a socket, v4-mapped also where a dual-stack socket has an IPv4 peer.
#[inline(always)]
fn ends(ops: *mut bpf_sock_ops) -> (Address, Address) {
    // SAFETY: the context is valid for the program's whole run; see `admit` on reads before branches.
    let (family, v4, remote, local) = unsafe {
        (
            (&raw const (*ops).family).read_volatile(),
            [(&raw const (*ops).remote_ip4).read_volatile(), (&raw const (*ops).local_ip4).read_volatile()],
            [
                (&raw const (*ops).remote_ip6[0]).read_volatile(),
                (&raw const (*ops).remote_ip6[1]).read_volatile(),
                (&raw const (*ops).remote_ip6[2]).read_volatile(),
                (&raw const (*ops).remote_ip6[3]).read_volatile(),
            ],
            [
                (&raw const (*ops).local_ip6[0]).read_volatile(),
                (&raw const (*ops).local_ip6[1]).read_volatile(),
                (&raw const (*ops).local_ip6[2]).read_volatile(),
                (&raw const (*ops).local_ip6[3]).read_volatile(),
            ],
        )
    };
    if family == AF_INET {
        (Address::from_v4(v4[0]), Address::from_v4(v4[1]))
    } else {
        (Address::from_v6(remote), Address::from_v6(local))
    }
}
