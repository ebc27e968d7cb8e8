//! The maps, from the table in `balancer_common::records::maps`, and helpers for some of them.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_FORCE_WAKEUP},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SockMap},
    helpers::{bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
};
use balancer_common::{
    for_each_map,
    records::{LISTENER_V4, LISTENER_V6, maps::prelude::*},
    verdict::SendReason,
    wire::Family,
};

macro_rules! define {
    ($($(#[$doc:meta])* $name:ident: $kind:ident<$($parameter:tt),+>, $lifetime:ident;)+) => {
        $($(#[$doc])*
        #[btf_map]
        pub static $name: $kind<$($parameter),+> = $kind::new();)+
    };
}
for_each_map!(define);

const _: () = assert!(ON_DEMAND == BPF_F_NO_PREALLOC as usize);

/// Whether [`LISTENERS`] has one that takes connections of `family`; a dual-stack listener holds the slot of IPv6 only.
#[inline(always)]
pub fn has_listener(family: Family) -> bool {
    let has = |slot: u32| {
        // SAFETY: a map and a key of its size; the socket that comes of it is released at once.
        unsafe {
            let socket =
                bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const slot).cast());
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket);
        }
        true
    };
    (matches!(family, Family::V4) && has(LISTENER_V4)) || has(LISTENER_V6)
}

/// Counts, on this CPU.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU slot; an interrupt between load and store costs at most one count.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// Wakes the agent if it waits for news of the count. It does not wait again before it has read the count, so a busy host
/// pays one look for most changes.
#[inline(always)]
pub fn tell_agent() {
    let Some(awaited) = AWAITED.get_ptr_mut(0) else { return };
    // SAFETY: an aligned word of a map's value. Two CPUs that see it at the same time both wake the agent, once too often.
    unsafe {
        if awaited.read_volatile() == 0 {
            return;
        }
        awaited.write_volatile(0);
    }
    // Fails while the agent has stopped reading; then it is not there to be told.
    let _: Result<(), i32> = NEWS.output(0_u64, u64::from(BPF_RB_FORCE_WAKEUP));
}

/// Tells the reset stage, which is called next, its reason.
#[inline(always)]
pub fn note_reset_reason(why: SendReason) {
    if let Some(slot) = RESET_REASON.get_ptr_mut(0) {
        // SAFETY: a per-CPU slot, and programs of one hook do not nest between here and the reset stage.
        unsafe { *slot = why.index() };
    }
}
