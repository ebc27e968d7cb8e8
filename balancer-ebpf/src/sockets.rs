//! The two programs that see sockets: `admit` at the socket look-up, `track` at their changes. They read the context;
//! `socket_lookup` and `socket_state` decide.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
    },
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, generated::bpf_probe_read_kernel},
    macros::{sk_lookup, sock_ops},
    programs::{SkLookupContext, SockOpsContext},
};
use aya_log_ebpf::{info, warn};
use balancer_common::{
    hooks::{SocketEvent, Tables},
    records::LISTENER_MUTE,
    stages::{
        socket_lookup::{self, Answer, Lookup},
        socket_state::{self, Action, Operation},
    },
    verdict::Event,
    wire::{Address, Family, Port},
};

use crate::{maps, tables::Maps};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
/// Words of a socket that [`Change::is_in_namespace`] reads where it must; the loader checks that they are enough.
const SOCK_WORDS: usize = 8;

// Constants that the loader writes, which asks the kernel: the verifier does not look at branches that they rule out.

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

/// One of the loader's constants.
#[inline(always)]
fn constant(word: *const u32) -> u32 {
    // SAFETY: a static of this program; volatile, as the compiler must not take the value in the object for granted.
    unsafe { word.read_volatile() }
}

/// Reads a field of a context where it stands in the source: LLVM merges plain loads of two branches through a computed
/// context pointer, which the verifier refuses (all kernels: "dereference of modified ctx ptr").
macro_rules! read {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (&raw const (*$context).$($field)+).read_volatile() }
    };
}

#[inline(always)]
const fn family_of(family: u32) -> Family {
    if family == AF_INET { Family::V4 } else { Family::V6 }
}

/// Every look-up of a listener in this network namespace.
#[sk_lookup]
pub fn admit(ctx: SkLookupContext) -> u32 {
    let tables = Maps::new(&ctx);
    let lookup = lookup(&ctx);
    match socket_lookup::decide(&tables, &lookup) {
        Answer::Pass => SK_PASS,
        Answer::Drop => SK_DROP,
        Answer::ToMute => match maps::LISTENERS.redirect_sk_lookup(&ctx, LISTENER_MUTE, 0) {
            Ok(()) => SK_PASS,
            Err(_) => SK_DROP,
        },
        Answer::ToListener => {
            let [first, second] = socket_lookup::slots(lookup.family);
            if maps::LISTENERS.redirect_sk_lookup(&ctx, first, 0).is_ok()
                || maps::LISTENERS.redirect_sk_lookup(&ctx, second, 0).is_ok()
            {
                SK_PASS
            } else {
                tables.count(Event::NoListener);
                SK_DROP
            }
        }
    }
}

#[inline(always)]
fn lookup(ctx: &SkLookupContext) -> Lookup {
    let lookup = ctx.lookup;
    let (family, protocol, local_port) =
        (read!(lookup, family), read!(lookup, protocol), read!(lookup, local_port));
    // SAFETY: as in `read!`. The field is two bytes in network order, and two of padding.
    let remote_port = unsafe { (&raw const (*lookup).remote_port).cast::<u16>().read_volatile() };
    let v4 = [read!(lookup, remote_ip4), read!(lookup, local_ip4)];
    let v6 = [
        [
            read!(lookup, remote_ip6[0]),
            read!(lookup, remote_ip6[1]),
            read!(lookup, remote_ip6[2]),
            read!(lookup, remote_ip6[3]),
        ],
        [
            read!(lookup, local_ip6[0]),
            read!(lookup, local_ip6[1]),
            read!(lookup, local_ip6[2]),
            read!(lookup, local_ip6[3]),
        ],
    ];
    let mut ifindex = 0;
    if constant(&raw const KNOWS_INTERFACE) != 0 {
        ifindex = read!(lookup, ingress_ifindex);
    }
    Lookup {
        protocol,
        family: family_of(family),
        v4,
        v6,
        remote_port: Port::from_ne(remote_port),
        local_port: Port::new(local_port as u16),
        ifindex,
    }
}

/// Every change of a TCP socket's state under the cgroup root.
#[sock_ops]
pub fn track(ctx: SockOpsContext) -> u32 {
    match socket_state::decide(&Maps::new(&ctx), &Change(&ctx)) {
        Action::Done => {}
        Action::NoteListener => note_listener(&ctx),
        Action::ReportUntracked => warn!(&ctx, "a connection cannot be counted"),
    }
    0
}

#[inline(always)]
fn note_listener(ctx: &SockOpsContext) {
    let [slot, _] = socket_lookup::slots(family_of(ctx.family()));
    // SAFETY: the context is valid for the program's whole run.
    let noted = unsafe { maps::LISTENERS.update(slot, ctx.ops, u64::from(BPF_ANY)) };
    match noted {
        Ok(()) => info!(ctx, "a listener on the API port is there"),
        // MPTCP, for one: Go's own default from 1.24 on.
        Err(error) => info!(ctx, "a listener on the API port is there, and in no map: error {}", error),
    }
}

/// The change that `track` is called for.
struct Change<'a>(&'a SockOpsContext);

impl SocketEvent for Change<'_> {
    #[inline(always)]
    fn operation(&self) -> Operation {
        match self.0.op() {
            BPF_SOCK_OPS_TCP_LISTEN_CB => Operation::Listen,
            BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => Operation::Established,
            BPF_SOCK_OPS_STATE_CB => Operation::State(self.0.arg(1)),
            _ => Operation::Other,
        }
    }

    /// The cgroup root holds the sockets of all namespaces.
    #[inline(always)]
    fn is_in_namespace(&self, netns: u64) -> bool {
        if constant(&raw const KNOWS_NETNS) != 0 {
            // SAFETY: a helper call on the context.
            return unsafe { bpf_get_netns_cookie(self.0.as_ptr()) == netns };
        }
        let (mut head, mut inode) = ([0_u64; SOCK_WORDS], 0_u32);
        // SAFETY: the helper fills as many bytes as it is told, and fails where an address is none.
        unsafe {
            // The verifier wants the pointer as it is; the offset is for the copy.
            let socket = (*self.0.ops).__bindgen_anon_2.sk;
            if socket.is_null()
                || bpf_probe_read_kernel(head.as_mut_ptr().cast(), size_of_val(&head) as u32, socket.cast())
                    != 0
            {
                return false;
            }
            let net = head[constant(&raw const SOCK_NET) as usize / 8 % SOCK_WORDS];
            let address = net.wrapping_add(u64::from(constant(&raw const NET_INUM)));
            if bpf_probe_read_kernel((&raw mut inode).cast(), 4, address as *const core::ffi::c_void) != 0 {
                return false;
            }
        }
        u64::from(inode) == netns
    }

    #[inline(always)]
    fn local_port(&self) -> Port {
        Port::new(self.0.local_port() as u16)
    }

    #[inline(always)]
    fn remote_port(&self) -> Port {
        // The kernel hands the port out as a 32-bit word in network order, in its upper half.
        Port::new(u32::from_be(read!(self.0.ops, remote_port)) as u16)
    }

    #[inline(always)]
    fn addresses(&self) -> [Address; 2] {
        let ops = self.0.ops;
        let family = read!(ops, family);
        let v4 = [read!(ops, remote_ip4), read!(ops, local_ip4)];
        let remote = [
            read!(ops, remote_ip6[0]),
            read!(ops, remote_ip6[1]),
            read!(ops, remote_ip6[2]),
            read!(ops, remote_ip6[3]),
        ];
        let local = [
            read!(ops, local_ip6[0]),
            read!(ops, local_ip6[1]),
            read!(ops, local_ip6[2]),
            read!(ops, local_ip6[3]),
        ];
        if family == AF_INET {
            [Address::from_v4(v4[0]), Address::from_v4(v4[1])]
        } else {
            [Address::from_v6(remote), Address::from_v6(local)]
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: a helper call on the context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }
}
