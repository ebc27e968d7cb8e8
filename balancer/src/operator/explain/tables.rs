//! What the programs look up for one client, on paper: the maps as they were read, one SYN, and the stages that decide it.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    ops::{Deref, DerefMut},
    rc::Rc,
};

use anyhow::Result;
use balancer_common::{
    hooks::{Exchange, Packet, Socket, Tables},
    policy::pick::PickScratch,
    records::{
        AddressClass, Budget, Controller, Device, Flow, Fragment, FragmentKey, Network, Probe, Reservation,
        Settings, Tracked, Traffic, Tuple,
    },
    stages::{Stage, choose, client_syn, commit, ingress},
    verdict::{Event, SendReason, Verdict},
    wire::{Address, Family, Port, checksum::Change},
};
use bytemuck::Pod;
use etherparse::PacketBuilder;

/// The records that decide about a new connection of one client address, all read at one time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The client's address, and the address of this controller that it dials.
    pub client: IpAddr,
    pub dialled: IpAddr,
    /// Their classes.
    pub classes: [AddressClass; 2],
    pub settings: Settings,
    /// By slot.
    pub controllers: Vec<Controller>,
    /// By slot.
    pub traffic: Vec<Traffic>,
    pub budget: Budget,
    /// The connections of the client's address, if they are counted.
    pub own: Option<Budget>,
    pub network: Network,
    /// When this host last refused the client for another controller's sake.
    pub refused_ns: Option<u64>,
    /// Boot clock, nanoseconds.
    pub now_ns: u64,
}

/// The decision about a SYN, and the state of its pick.
pub struct Decided {
    pub verdict: Verdict,
    pub pick: PickScratch,
    /// The client has all the connections that it may have.
    pub is_client_full: bool,
}

impl Snapshot {
    pub fn family(&self) -> Family {
        if self.client.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Sends a SYN of the client through the stages. `turn` gives the random numbers: a thousand turns spread them evenly.
    pub fn decide(&self, turn: u32) -> Result<Decided> {
        let run = Run {
            snapshot: self,
            budget: RefCell::new(self.budget),
            client: RefCell::new(self.own.unwrap_or_default()),
            scratch: Rc::default(),
            draws: Cell::new((turn, 0)),
            is_client_full: Cell::new(false),
        };
        let mut syn = Syn::new(self)?;
        let mut verdict = ingress::decide(&syn, &run);
        loop {
            verdict = match verdict {
                Verdict::Next(Stage::ClientSyn) => client_syn::decide(&mut syn, &run),
                Verdict::Next(Stage::Choose) => choose::decide(&mut syn, &run),
                Verdict::Next(Stage::Commit) => commit::decide(&mut syn, &run),
                Verdict::Next(_)
                | Verdict::Pass(_)
                | Verdict::Send(..)
                | Verdict::Drop(_)
                | Verdict::Reset(_) => {
                    let (pick, is_client_full) = (run.scratch.get(), run.is_client_full.get());
                    return Ok(Decided { verdict, pick, is_client_full });
                }
            };
        }
    }
}

/// A frame with a SYN.
struct Syn(Vec<u8>);

impl Syn {
    fn new(snapshot: &Snapshot) -> Result<Self> {
        // No client has this port: it stands for a new one.
        let (source, port) = (1, snapshot.settings.api_port.host());
        let builder = PacketBuilder::ethernet2([0; 6], [0; 6]);
        let builder = match (snapshot.client, snapshot.dialled) {
            (IpAddr::V4(client), IpAddr::V4(dialled)) => builder.ipv4(client.octets(), dialled.octets(), 64),
            (client, dialled) => {
                let octets = |address| bytemuck::cast::<Address, [u8; 16]>(Address::from(address));
                builder.ipv6(octets(client), octets(dialled), 64)
            }
        };
        let mut frame = Vec::new();
        builder.tcp(source, port, 1, 64_000).syn().write(&mut frame, &[])?;
        Ok(Self(frame))
    }
}

impl Packet for Syn {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn ifindex(&self) -> u32 {
        1
    }

    fn tagged(&self) -> bool {
        false
    }

    fn read<T: Pod>(&self, at: usize) -> Option<T> {
        bytemuck::try_pod_read_unaligned(self.0.get(at..at.checked_add(size_of::<T>())?)?).ok()
    }

    fn read_anywhere<T: Pod>(&self, at: usize) -> Option<T> {
        self.read(at)
    }

    // The stages up to the decision change no packet.
    fn write<T: Pod>(&mut self, _at: usize, _value: &T) -> Option<()> {
        None
    }

    fn write_anywhere<T: Pod>(&mut self, _at: usize, _value: &T) -> Option<()> {
        None
    }

    fn resize(&mut self, _len: u32) -> Option<()> {
        None
    }

    fn change_checksum(&mut self, _at: usize, _change: &Change, _family: Family) -> Option<()> {
        None
    }
}

/// The tables for one SYN: the snapshot, and the few records that the stages change on the way. A new connection has no
/// flow, no socket and no reservation.
struct Run<'a> {
    snapshot: &'a Snapshot,
    budget: RefCell<Budget>,
    client: RefCell<Budget>,
    scratch: Rc<Cell<PickScratch>>,
    /// The turn, and how many random numbers it has drawn.
    draws: Cell<(u32, usize)>,
    is_client_full: Cell<bool>,
}

/// The scratch record in place: written back when its holder is done.
struct Held(PickScratch, Rc<Cell<PickScratch>>);

impl Deref for Held {
    type Target = PickScratch;
    fn deref(&self) -> &PickScratch {
        &self.0
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PickScratch {
        &mut self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.set(self.0);
    }
}

impl Tables for Run<'_> {
    type Flow = Box<Flow>;
    type Network = Box<Network>;
    type Scratch = Held;

    fn settings(&self) -> Option<&Settings> {
        Some(&self.snapshot.settings)
    }

    fn controller(&self, index: usize) -> Option<&Controller> {
        self.snapshot.controllers.get(index)
    }

    fn traffic(&self, index: usize) -> Option<Traffic> {
        self.snapshot.traffic.get(index).copied()
    }

    fn exchanged(&self, _index: usize, _exchange: Exchange) {}

    fn class_of(&self, address: &Address) -> AddressClass {
        let [client, dialled] = self.snapshot.classes;
        if *address == Address::from(self.snapshot.client) { client } else { dialled }
    }

    fn device(&self, _ifindex: u32) -> Option<Device> {
        None
    }

    fn live(&self, _key: &Tuple) -> Option<Box<Flow>> {
        None
    }

    fn half_open(&self, _key: &Tuple) -> Option<Box<Flow>> {
        None
    }

    fn insert_live(&self, _key: &Tuple, _flow: &Flow) -> bool {
        true
    }

    fn insert_half_open(&self, _key: &Tuple, _flow: &Flow, _replace: bool) -> bool {
        true
    }

    fn remove_live(&self, _key: &Tuple) {}

    fn remove_half_open(&self, _key: &Tuple) {}

    fn fragment(&self, _key: &FragmentKey) -> Option<Fragment> {
        None
    }

    fn insert_fragment(&self, _key: &FragmentKey, _fragment: &Fragment) {}

    fn network(&self, _key: &Address) -> Option<Box<Network>> {
        Some(Box::new(self.snapshot.network))
    }

    fn insert_network(&self, _key: &Address, _network: &Network) {}

    fn probe(&self, _key: &Tuple) -> Option<Probe> {
        None
    }

    fn budget<R>(&self, change: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        Some(change(&mut self.budget.borrow_mut()))
    }

    fn client<R>(&self, _address: &Address, change: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        Some(change(&mut self.client.borrow_mut()))
    }

    fn may_check_final_ack(&self) -> bool {
        false
    }

    fn checks_final_ack(&self, _now_s: u32) -> bool {
        false
    }

    fn reservation(&self, _key: &Tuple) -> Option<Reservation> {
        None
    }

    fn reserve(&self, _key: &Tuple, _reservation: &Reservation, _replace: bool) -> bool {
        true
    }

    fn note_answer(&self, _key: &Tuple, _ack: u32) {}

    fn forget(&self, _key: &Tuple) -> bool {
        true
    }

    fn track(&self, _cookie: u64, _tracked: &Tracked) -> bool {
        true
    }

    fn tracked(&self, _cookie: u64) -> Option<Tracked> {
        None
    }

    fn untrack(&self, _cookie: u64) -> bool {
        true
    }

    fn tell_agent(&self) {}

    fn recently_refused(&self, _address: &Address) -> Option<u64> {
        self.snapshot.refused_ns
    }

    fn note_refused(&self, _address: &Address, _now_ns: u64) {}

    fn socket(&self, _key: &Tuple, _family: Family) -> Socket {
        Socket::Listener
    }

    fn is_probing(&self) -> bool {
        false
    }

    fn hand_over(&self, _key: &Tuple, _family: Family, _port: Port) {}

    fn pick_scratch(&self) -> Option<Held> {
        Some(Held(self.scratch.get(), Rc::clone(&self.scratch)))
    }

    fn now_ns(&self) -> u64 {
        self.snapshot.now_ns
    }

    fn random(&self) -> u32 {
        // Roberts' additive sequence in three dimensions, in parts of 2³²: even over any number of turns.
        const STEPS: [u32; 3] = [3_518_319_155, 2_882_110_345, 2_360_945_575];
        let (turn, drawn) = self.draws.get();
        self.draws.set((turn, drawn + 1));
        STEPS[drawn % STEPS.len()].wrapping_mul(turn)
    }

    fn new_flows(&self, _now_s: u32) -> u32 {
        1
    }

    fn count(&self, event: Event) {
        self.is_client_full.set(self.is_client_full.get() || event == Event::ClientFull);
    }

    fn reset_reason(&self) -> SendReason {
        SendReason::NoFlow
    }
}
