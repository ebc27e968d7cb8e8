//! `Tables` over the maps, and the socket look-up.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_tuple,
    },
    btf_maps::lpm_trie::Key,
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_boot_ns, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp,
        bpf_spin_lock, bpf_spin_unlock,
    },
    programs::SockOpsContext,
};
use balancer_common::{
    hooks::{Exchange, Socket, Tables},
    policy::pick::PickScratch,
    records::{
        AddressClass, Budget, Controller, Device, Flow, Fragment, FragmentKey, Network, Probe, Reservation,
        Settings, Tracked, Traffic, Tuple,
    },
    verdict::{Event, SendReason},
    wire::{Address, Family, Port},
};

use crate::maps;

/// States of a socket (kernel `include/net/tcp_states.h`).
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;

/// The maps, as seen from a program called for `ctx`.
pub struct Maps {
    ctx: *mut core::ffi::c_void,
}

impl Maps {
    /// For the time of one program run.
    #[inline(always)]
    pub fn new(ctx: &impl EbpfContext) -> Self {
        Self { ctx: ctx.as_ptr() }
    }

    /// Asks the stack for the socket of a segment that arrives with `key`, `admit` aside: null, or the caller's to release.
    #[inline(always)]
    fn look_up(&self, key: &Tuple, family: Family) -> *mut bpf_sock {
        let Some(probing) = in_place(maps::PROBING.get_ptr_mut(0)) else { return core::ptr::null_mut() };
        // The tuple as it arrives: source first (kernel `struct bpf_sock_tuple`).
        let v4 = (key.remote.v4(), key.local.v4(), key.remote_port, key.local_port);
        let mut words = [v4.0, v4.1, u32::from(v4.2.ne()) | u32::from(v4.3.ne()) << 16, 0, 0, 0, 0, 0, 0];
        let mut length = 12;
        if family == Family::V6 {
            let (remote, local) = (key.remote.words(), key.local.words());
            words = [
                remote[0], remote[1], remote[2], remote[3], local[0], local[1], local[2], local[3], words[2],
            ];
            length = 36;
        }
        *probing = 1;
        // SAFETY: the tuple is as long as the helper is told.
        let socket = unsafe {
            let tuple = words.as_mut_ptr().cast::<bpf_sock_tuple>();
            bpf_skc_lookup_tcp(self.ctx, tuple, length, BPF_F_CURRENT_NETNS as u64, 0)
        };
        *probing = 0;
        socket
    }
}

/// A value in a map, in place.
///
/// Other CPUs may hold the same one. The records allow for that: each field is written whole, and no decision relies on two
/// fields having been written together.
#[inline(always)]
fn in_place<T>(pointer: Option<*mut T>) -> Option<&'static mut T> {
    // SAFETY: a map's value outlives the program run, which is RCU-protected.
    pointer.map(|pointer| unsafe { &mut *pointer })
}

/// Runs `change` on a budget in a map, under its lock.
#[inline(always)]
fn locked<R>(budget: *mut Budget, change: impl FnOnce(&mut Budget) -> R) -> R {
    // SAFETY: a map's value, exclusive between lock and unlock; `change` is inlined and calls no helper, or the verifier
    // refuses the program.
    unsafe {
        let lock = (&raw mut (*budget).lock).cast();
        bpf_spin_lock(lock);
        let result = change(&mut *budget);
        bpf_spin_unlock(lock);
        result
    }
}

impl Tables for Maps {
    type Flow = &'static mut Flow;
    type Network = &'static mut Network;
    type Scratch = &'static mut PickScratch;

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        maps::SETTINGS.get(0)
    }

    #[inline(always)]
    fn controller(&self, index: usize) -> Option<&Controller> {
        maps::CONTROLLERS.get(index as u32)
    }

    #[inline(always)]
    fn traffic(&self, index: usize) -> Option<Traffic> {
        maps::TRAFFIC.get(index as u32).copied()
    }

    #[inline(always)]
    fn exchanged(&self, index: usize, exchange: Exchange) {
        let Some(traffic) = in_place(maps::TRAFFIC.get_ptr_mut(index as u32)) else { return };
        match exchange {
            Exchange::Sent => add(&raw mut traffic.sent),
            Exchange::Received => add(&raw mut traffic.received),
            Exchange::Doubted => add(&raw mut traffic.doubts),
            Exchange::Failed(_) => add(&raw mut traffic.failed),
            Exchange::Answered(_) => {}
        }
        exchange.conclude(traffic);
    }

    #[inline(always)]
    fn class_of(&self, address: &Address) -> AddressClass {
        maps::ADDRESSES.get(&Key::new(128, *address)).copied().unwrap_or(AddressClass::CLIENT)
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: devices are replaced whole by the agent.
        unsafe { maps::DEVICES.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn live(&self, key: &Tuple) -> Option<Self::Flow> {
        in_place(maps::LIVE.get_ptr_mut(key))
    }

    #[inline(always)]
    fn half_open(&self, key: &Tuple) -> Option<Self::Flow> {
        in_place(maps::HALF_OPEN.get_ptr_mut(key))
    }

    #[inline(always)]
    fn insert_live(&self, key: &Tuple, flow: &Flow) -> bool {
        maps::LIVE.insert(key, flow, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn insert_half_open(&self, key: &Tuple, flow: &Flow, replace: bool) -> bool {
        maps::HALF_OPEN.insert(key, flow, u64::from(if replace { BPF_ANY } else { BPF_NOEXIST })).is_ok()
    }

    #[inline(always)]
    fn remove_live(&self, key: &Tuple) {
        let _: Result<(), i32> = maps::LIVE.remove(key);
    }

    #[inline(always)]
    fn remove_half_open(&self, key: &Tuple) {
        let _: Result<(), i32> = maps::HALF_OPEN.remove(key);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: copied at once.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _: Result<(), i32> = maps::FRAGMENTS.insert(key, fragment, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn network(&self, key: &Address) -> Option<Self::Network> {
        in_place(maps::NETWORKS.get_ptr_mut(key))
    }

    #[inline(always)]
    fn insert_network(&self, key: &Address, network: &Network) {
        let _: Result<(), i32> = maps::NETWORKS.insert(key, network, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn probe(&self, key: &Tuple) -> Option<Probe> {
        // SAFETY: copied at once.
        unsafe { maps::PROBES.get(key) }.copied()
    }

    #[inline(always)]
    fn budget<R>(&self, change: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        maps::BUDGET.get_ptr_mut(0).map(|budget| locked(budget, change))
    }

    #[inline(always)]
    fn client<R>(&self, address: &Address, change: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        let mut budget = maps::CLIENTS.get_ptr_mut(address);
        if budget.is_none() {
            // Fails if another CPU has just made it, which is fine.
            let _: Result<(), i32> = maps::CLIENTS.insert(address, Budget::default(), u64::from(BPF_NOEXIST));
            budget = maps::CLIENTS.get_ptr_mut(address);
        }
        budget.map(|budget| locked(budget, change))
    }

    #[inline(always)]
    fn may_check_final_ack(&self) -> bool {
        maps::BUDGET.get(0).is_some_and(|budget| budget.check_final_ack_until_s != 0)
    }

    #[inline(always)]
    fn checks_final_ack(&self, now_s: u32) -> bool {
        maps::BUDGET.get(0).is_some_and(|budget| budget.checks_final_ack(now_s))
    }

    #[inline(always)]
    fn reservation(&self, key: &Tuple) -> Option<Reservation> {
        // SAFETY: copied at once.
        unsafe { maps::RESERVED.get(key) }.copied()
    }

    #[inline(always)]
    fn reserve(&self, key: &Tuple, reservation: &Reservation, replace: bool) -> bool {
        maps::RESERVED
            .insert(key, reservation, u64::from(if replace { BPF_ANY } else { BPF_NOEXIST }))
            .is_ok()
    }

    #[inline(always)]
    fn note_answer(&self, key: &Tuple, ack: u32) {
        if let Some(reservation) = in_place(maps::RESERVED.get_ptr_mut(key)) {
            reservation.ack = ack;
        }
    }

    #[inline(always)]
    fn forget(&self, key: &Tuple) -> bool {
        maps::RESERVED.remove(key).is_ok()
    }

    #[inline(always)]
    fn track(&self, cookie: u64, tracked: &Tracked) -> bool {
        maps::TRACKED.insert(cookie, tracked, u64::from(BPF_ANY)).is_ok()
            && SockOpsContext::new(self.ctx.cast()).set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
    }

    #[inline(always)]
    fn tracked(&self, cookie: u64) -> Option<Tracked> {
        // SAFETY: copied at once.
        unsafe { maps::TRACKED.get(cookie) }.copied()
    }

    #[inline(always)]
    fn untrack(&self, cookie: u64) -> bool {
        maps::TRACKED.remove(cookie).is_ok()
    }

    #[inline(always)]
    fn tell_agent(&self) {
        maps::tell_agent();
    }

    #[inline(always)]
    fn recently_refused(&self, address: &Address) -> Option<u64> {
        // SAFETY: copied at once.
        unsafe { maps::RECENTLY_REFUSED.get(address) }.copied()
    }

    #[inline(always)]
    fn note_refused(&self, address: &Address, now_ns: u64) {
        let _: Result<(), i32> = maps::RECENTLY_REFUSED.insert(address, now_ns, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn socket(&self, key: &Tuple, family: Family) -> Socket {
        let socket = self.look_up(key, family);
        if socket.is_null() {
            return Socket::None;
        }
        // SAFETY: it was looked up just now, and is released at once.
        let state = unsafe {
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state
        };
        match state {
            TIME_WAIT => Socket::None,
            LISTEN => Socket::Listener,
            NEW_SYN_RECV => Socket::Handshake,
            _ => Socket::Connection,
        }
    }

    #[inline(always)]
    fn is_probing(&self) -> bool {
        maps::PROBING.get(0).copied().unwrap_or(0) != 0
    }

    #[inline(always)]
    fn hand_over(&self, key: &Tuple, family: Family, port: Port) {
        if maps::has_listener(family) {
            return;
        }
        let known = self.look_up(key, family);
        if !known.is_null() {
            // SAFETY: as above.
            unsafe { bpf_sk_release(known.cast()) };
            return;
        }
        // No client's port is 0, so this finds no connection.
        let socket = self.look_up(&Tuple { remote_port: Port::NONE, local_port: port, ..*key }, family);
        if !socket.is_null() {
            // SAFETY: as above. Fails if the socket takes no packet from here; then the look-up refuses it.
            unsafe {
                if (*socket).state == LISTEN {
                    bpf_sk_assign(self.ctx, socket.cast(), 0);
                }
                bpf_sk_release(socket.cast());
            }
        }
    }

    #[inline(always)]
    fn pick_scratch(&self) -> Option<Self::Scratch> {
        in_place(maps::PICK_SCRATCH.get_ptr_mut(0))
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn new_flows(&self, now_s: u32) -> u32 {
        let Some(slot) = in_place(maps::NEW_FLOWS.get_ptr_mut(0)) else { return 0 };
        let count = if (*slot >> 32) as u32 == now_s { (*slot as u32).wrapping_add(1) } else { 1 };
        *slot = u64::from(now_s) << 32 | u64::from(count);
        count
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        maps::count(event.index());
    }

    #[inline(always)]
    fn reset_reason(&self) -> SendReason {
        let index = maps::RESET_REASON.get(0).map_or(0, |index| *index);
        SendReason::at(index).unwrap_or(SendReason::NoFlow)
    }
}

/// Adds one atomically. It does not ask for the old value: kernel 5.10 has no fetching atomics.
#[inline(always)]
fn add(counter: *mut u64) {
    // SAFETY: an aligned field of a map's value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}
