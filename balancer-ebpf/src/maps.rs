//! Every map. Names and records are in `balancer_common::records`.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, SockMap},
    helpers::{bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
};
use balancer_common::{
    policy::pick::PickScratch,
    records::{
        AddressClass, Budget, Controller, Device, Flow, MAX_ADDRESSES, MAX_CLIENTS, MAX_CONTROLLERS,
        MAX_DEVICES, MAX_FLOWS, MAX_HALF_OPEN, MAX_RECENTLY_REFUSED, MAX_RESERVED, MAX_TRACKED, Reservation,
        Settings, Tracked, Traffic, Tuple,
    },
    verdict::{COUNTERS as COUNTER_SLOTS, SendReason, Stage},
    wire::{Address, Family},
};

/// Memory only for the flows that there are: the maximum is rarely met.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static BUDGET: Array<Budget, 1> = Array::new();
#[btf_map]
pub static CLIENTS: HashMap<Address, Budget, MAX_CLIENTS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static CONTROLLERS: Array<Controller, MAX_CONTROLLERS> = Array::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, COUNTER_SLOTS> = PerCpuArray::new();
#[btf_map]
pub static DEVICES: HashMap<u32, Device, MAX_DEVICES, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static HALF_OPEN: LruHashMap<Tuple, Flow, MAX_HALF_OPEN> = LruHashMap::new();
#[btf_map]
pub static LISTENERS: SockMap<2> = SockMap::new();
/// Slots of [`LISTENERS`].
pub const LISTENER_V4: u32 = 0;
pub const LISTENER_V6: u32 = 1;
#[btf_map]
pub static LIVE: HashMap<Tuple, Flow, MAX_FLOWS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static ADDRESSES: LpmTrie<Address, AddressClass, MAX_ADDRESSES> = LpmTrie::new();
#[btf_map]
pub static RECENTLY_REFUSED: LruHashMap<Address, u64, MAX_RECENTLY_REFUSED> = LruHashMap::new();
#[btf_map]
pub static RESERVED: LruHashMap<Tuple, Reservation, MAX_RESERVED> = LruHashMap::new();
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
pub static STAGES: ProgramArray<{ Stage::COUNT as usize }> = ProgramArray::new();
#[btf_map]
pub static STAGES_XDP: ProgramArray<{ Stage::COUNT as usize }> = ProgramArray::new();
#[btf_map]
pub static TRACKED: HashMap<u64, Tracked, MAX_TRACKED, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static TRAFFIC: Array<Traffic, MAX_CONTROLLERS> = Array::new();

/// Room for a pick, too large for the stack.
#[btf_map]
pub static PICK_SCRATCH: PerCpuArray<PickScratch, 1> = PerCpuArray::new();
/// 1 while one of our programs looks up a socket, so that `admit`, which runs inside, keeps still.
#[btf_map]
pub static PROBING: PerCpuArray<u32, 1> = PerCpuArray::new();
/// New flows on this CPU: second in the high half, count in the low one.
#[btf_map]
pub static NEW_FLOWS: PerCpuArray<u64, 1> = PerCpuArray::new();
/// Why the reset stage is called.
#[btf_map]
pub static WHY: PerCpuArray<u32, 1> = PerCpuArray::new();

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

/// Counts on this CPU.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU slot; an interrupt between load and store costs at most one count.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// Leaves word for the reset stage.
#[inline(always)]
pub fn note_why(why: SendReason) {
    if let Some(slot) = WHY.get_ptr_mut(0) {
        // SAFETY: a per-CPU slot, and programs of one hook do not nest between here and its reader.
        unsafe { *slot = why.index() };
    }
}

/// The word that [`note_why`] left.
#[inline(always)]
pub fn why() -> SendReason {
    // SAFETY: as in `note_why`.
    let index = WHY.get_ptr(0).map_or(0, |slot| unsafe { *slot });
    SendReason::at(index).unwrap_or(SendReason::NoFlow)
}
