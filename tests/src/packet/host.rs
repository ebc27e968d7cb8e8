//! The decisions on the host: `Tables` over hash maps.
#![expect(clippy::missing_panics_doc, reason = "a fixture panics to fail its test")]

mod frame;
mod run;
mod world;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::net::IpAddr;

use balancer_common::hooks::{Exchange, Socket, Tables};
use balancer_common::policy::pick::PickScratch;
use balancer_common::records::{
    AddressClass, Budget, Controller, Device, Flow, Fragment, FragmentKey, MAX_CONTROLLERS, Network, Probe,
    Reservation, Settings, Tracked, Traffic, Tuple,
};
use balancer_common::verdict::{COUNTER_SLOTS, Event, SendReason, names};
use balancer_common::wire::{Address, Family, Port};

use crate::support::chance::Chance;

pub use self::frame::Frame;
pub use self::run::{Action, Hook, REDIRECT, SHOT, UNSPEC, look_up, run};
pub use self::world::{World, prefix_length, show};

type Slots<V> = RefCell<HashMap<Tuple, V>>;
/// A record in place. It is never freed: a removed record stays valid for its holders, as under RCU. If two
/// holders use one record at the same time, the test panics.
type Slot = &'static RefCell<Flow>;

thread_local! {
    /// Records of dropped hosts, for reuse.
    static SLOTS: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
    static FIELDS: RefCell<Vec<&'static RefCell<PickScratch>>> = const { RefCell::new(Vec::new()) };
}

/// `Tables` on the host.
pub struct Host {
    world: World,
    traffic: RefCell<[Traffic; MAX_CONTROLLERS]>,
    live: Slots<Slot>,
    half_open: Slots<Slot>,
    fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    networks: RefCell<HashMap<Address, &'static RefCell<Network>>>,
    reserved: Slots<Reservation>,
    tracked: RefCell<HashMap<u64, Tracked>>,
    budget: RefCell<Budget>,
    told: Cell<u32>,
    clients: RefCell<HashMap<Address, Budget>>,
    recently_refused: RefCell<HashMap<Address, u64>>,
    field: &'static RefCell<PickScratch>,
    /// All records that this host has made.
    slots: RefCell<Vec<Slot>>,
    new_flows: Cell<(u32, u32)>,
    counters: RefCell<[u64; COUNTER_SLOTS]>,
    reset_reason: Cell<Option<SendReason>>,
    meanwhile: RefCell<Option<Meanwhile>>,
    /// State of the random numbers; `None`: each draw is the world's.
    draws: Cell<Option<u64>>,
}

/// Something that another CPU does just before a look at the half-open flows, after that many more.
type Meanwhile = (u32, Box<dyn FnOnce(&Host)>);

impl Host {
    /// The tables of `world`.
    pub fn new(world: &World) -> Self {
        let mut made = Vec::new();
        let mut slots = |map: &HashMap<Tuple, Flow>| {
            RefCell::new(map.iter().map(|(&key, &flow)| (key, slot(flow, &mut made))).collect())
        };
        let (live, half_open) = (slots(&world.live), slots(&world.half_open));
        let field = FIELDS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Box::leak(Box::default()));
        *field.borrow_mut() = PickScratch::default();
        Self {
            world: world.clone(),
            traffic: RefCell::new(world.traffic),
            live,
            half_open,
            fragments: RefCell::new(world.fragments.clone()),
            networks: RefCell::new(
                world
                    .networks
                    .iter()
                    .map(|(key, network)| (*key, &*Box::leak(Box::new(RefCell::new(*network)))))
                    .collect(),
            ),
            reserved: RefCell::new(world.reserved.clone()),
            tracked: RefCell::new(world.tracked.clone()),
            budget: RefCell::new(world.budget),
            told: Cell::new(world.told),
            clients: RefCell::new(world.clients.clone()),
            recently_refused: RefCell::new(world.recently_refused.clone()),
            field,
            slots: RefCell::new(made),
            new_flows: Cell::default(),
            counters: RefCell::new([0; COUNTER_SLOTS]),
            reset_reason: Cell::default(),
            meanwhile: RefCell::default(),
            draws: Cell::default(),
        }
    }

    /// The current contents of the tables.
    pub fn world(&self) -> World {
        let flows = |map: &Slots<Slot>| {
            map.borrow().iter().map(|(&key, flow)| (key, *flow.borrow())).collect::<HashMap<_, _>>()
        };
        World {
            traffic: *self.traffic.borrow(),
            live: flows(&self.live),
            half_open: flows(&self.half_open),
            fragments: self.fragments.borrow().clone(),
            networks: self.networks.borrow().iter().map(|(key, network)| (*key, *network.borrow())).collect(),
            reserved: self.reserved.borrow().clone(),
            tracked: self.tracked.borrow().clone(),
            budget: *self.budget.borrow(),
            told: self.told.get(),
            clients: self.clients.borrow().clone(),
            recently_refused: self.recently_refused.borrow().clone(),
            ..self.world.clone()
        }
    }

    /// Sets the clock.
    pub fn set_now_s(&mut self, now_s: u32) {
        self.world.now_ns = u64::from(now_s) * 1_000_000_000;
    }

    /// Lets another CPU do something just before this one looks at the half-open flows, after `looks` more looks there.
    pub fn meanwhile(&self, looks: u32, acts: impl FnOnce(&Self) + 'static) {
        self.meanwhile.replace(Some((looks, Box::new(acts))));
    }

    /// Changes a half-open record, unless it is held.
    pub fn change_half_open(&self, key: &Tuple, change: impl FnOnce(&mut Flow)) -> bool {
        let half_open = self.half_open.borrow();
        let flow = half_open.get(key).and_then(|slot| slot.try_borrow_mut().ok());
        flow.map(|mut flow| change(&mut flow)).is_some()
    }

    /// Sets the result of every random draw.
    pub fn set_random(&mut self, random: u32) {
        self.world.random = random;
    }

    /// Lets the random draws differ from here on, in the course that `seed` gives.
    pub fn draw_from(&self, seed: u64) {
        self.draws.set(Some(seed));
    }

    /// Sets the clock to a part of a second.
    pub fn set_now_ns(&mut self, now_ns: u64) {
        self.world.now_ns = now_ns;
    }

    /// Writes a controller's record, as an agent does.
    pub fn set_controller(&mut self, index: usize, controller: Controller) {
        self.world.controllers[index] = controller;
    }

    /// Counters since the start that are not 0.
    pub fn counters(&self) -> HashMap<&'static str, u64> {
        named(&self.counters.borrow()[..])
    }

    fn tally(&self, index: u32) {
        self.counters.borrow_mut()[index as usize] += 1;
    }
}

/// Counters that are not 0, by name.
pub fn named(counters: &[u64]) -> HashMap<&'static str, u64> {
    names().into_iter().zip(counters.iter().copied()).filter(|&(_, count)| count != 0).collect()
}

fn slot(flow: Flow, made: &mut Vec<Slot>) -> Slot {
    let slot: Slot =
        SLOTS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Box::leak(Box::new(RefCell::new(flow))));
    *slot.borrow_mut() = flow;
    made.push(slot);
    slot
}

impl Drop for Host {
    fn drop(&mut self) {
        SLOTS.with_borrow_mut(|slots| slots.append(self.slots.get_mut()));
        FIELDS.with_borrow_mut(|fields| fields.push(self.field));
    }
}

impl Tables for Host {
    type Flow = RefMut<'static, Flow>;
    type Network = RefMut<'static, Network>;
    type Scratch = RefMut<'static, PickScratch>;

    fn settings(&self) -> Option<&Settings> {
        Some(&self.world.settings)
    }

    fn controller(&self, index: usize) -> Option<&Controller> {
        self.world.controllers.get(index)
    }

    fn traffic(&self, index: usize) -> Option<Traffic> {
        self.traffic.borrow().get(index).copied()
    }

    fn exchanged(&self, index: usize, exchange: Exchange) {
        let mut traffic = self.traffic.borrow_mut();
        let Some(traffic) = traffic.get_mut(index) else { return };
        match exchange {
            Exchange::Sent => traffic.sent += 1,
            Exchange::Received => traffic.received += 1,
            Exchange::Doubted => traffic.doubts += 1,
            Exchange::Failed(_) => traffic.failed += 1,
            Exchange::Answered(_) => {}
        }
        exchange.conclude(traffic);
    }

    fn class_of(&self, address: &Address) -> AddressClass {
        let bits = |address: Address| match IpAddr::from(address) {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let matches = |prefix: &&(IpAddr, u32, AddressClass)| {
            let differ = bits(*address) ^ bits(Address::from(prefix.0));
            differ.leading_zeros() >= prefix_length(prefix.0, prefix.1)
        };
        let longest =
            self.world.classes.iter().filter(matches).max_by_key(|prefix| prefix_length(prefix.0, prefix.1));
        longest.map_or(AddressClass::CLIENT, |prefix| prefix.2)
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.world.devices.get(&ifindex).copied()
    }

    fn live(&self, key: &Tuple) -> Option<Self::Flow> {
        self.live.borrow().get(key).map(|slot| slot.borrow_mut())
    }

    fn half_open(&self, key: &Tuple) -> Option<Self::Flow> {
        let meanwhile = self.meanwhile.take();
        match meanwhile {
            Some((0, acts)) => acts(self),
            later => {
                self.meanwhile.replace(later.map(|(looks, acts)| (looks - 1, acts)));
            }
        }
        self.half_open.borrow().get(key).map(|slot| slot.borrow_mut())
    }

    fn insert_live(&self, key: &Tuple, flow: &Flow) -> bool {
        let slot = slot(*flow, &mut self.slots.borrow_mut());
        self.live.borrow_mut().insert(*key, slot);
        true
    }

    fn insert_half_open(&self, key: &Tuple, flow: &Flow, replace: bool) -> bool {
        let mut half_open = self.half_open.borrow_mut();
        let free = replace || !half_open.contains_key(key);
        if free {
            half_open.insert(*key, slot(*flow, &mut self.slots.borrow_mut()));
        }
        free
    }

    fn remove_live(&self, key: &Tuple) {
        self.live.borrow_mut().remove(key);
    }

    fn remove_half_open(&self, key: &Tuple) {
        self.half_open.borrow_mut().remove(key);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn network(&self, key: &Address) -> Option<Self::Network> {
        self.networks.borrow().get(key).map(|network| network.borrow_mut())
    }

    fn insert_network(&self, key: &Address, network: &Network) {
        self.networks.borrow_mut().insert(*key, Box::leak(Box::new(RefCell::new(*network))));
    }

    fn probe(&self, key: &Tuple) -> Option<Probe> {
        self.world.probes.get(key).copied()
    }

    fn budget<R>(&self, change: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        Some(change(&mut self.budget.borrow_mut()))
    }

    fn client<R>(&self, address: &Address, change: impl FnOnce(&mut Budget) -> R) -> Option<R> {
        Some(change(self.clients.borrow_mut().entry(*address).or_default()))
    }

    fn may_check_final_ack(&self) -> bool {
        self.budget.borrow().check_final_ack_until_s != 0
    }

    fn checks_final_ack(&self, now_s: u32) -> bool {
        self.budget.borrow().checks_final_ack(now_s)
    }

    fn reservation(&self, key: &Tuple) -> Option<Reservation> {
        self.reserved.borrow().get(key).copied()
    }

    fn reserve(&self, key: &Tuple, reservation: &Reservation, replace: bool) -> bool {
        let mut reserved = self.reserved.borrow_mut();
        let free = replace || !reserved.contains_key(key);
        if free {
            reserved.insert(*key, *reservation);
        }
        free
    }

    fn note_answer(&self, key: &Tuple, ack: u32) {
        if let Some(reservation) = self.reserved.borrow_mut().get_mut(key) {
            reservation.ack = ack;
        }
    }

    fn forget(&self, key: &Tuple) -> bool {
        self.reserved.borrow_mut().remove(key).is_some()
    }

    fn track(&self, cookie: u64, tracked: &Tracked) -> bool {
        if !self.world.untrackable {
            self.tracked.borrow_mut().insert(cookie, *tracked);
        }
        !self.world.untrackable
    }

    fn tracked(&self, cookie: u64) -> Option<Tracked> {
        self.tracked.borrow().get(&cookie).copied()
    }

    fn untrack(&self, cookie: u64) -> bool {
        self.tracked.borrow_mut().remove(&cookie).is_some()
    }

    fn tell_agent(&self) {
        self.told.set(self.told.get() + 1);
    }

    fn recently_refused(&self, address: &Address) -> Option<u64> {
        self.recently_refused.borrow().get(address).copied()
    }

    fn note_refused(&self, address: &Address, now_ns: u64) {
        self.recently_refused.borrow_mut().insert(*address, now_ns);
    }

    fn socket(&self, key: &Tuple, _family: Family) -> Socket {
        self.world.sockets.get(key).copied().unwrap_or(Socket::None)
    }

    fn is_probing(&self) -> bool {
        self.world.probing
    }

    fn hand_over(&self, _key: &Tuple, _family: Family, _port: Port) {}

    fn pick_scratch(&self) -> Option<Self::Scratch> {
        Some(self.field.borrow_mut())
    }

    fn now_ns(&self) -> u64 {
        self.world.now_ns
    }

    fn random(&self) -> u32 {
        let Some(state) = self.draws.get() else { return self.world.random };
        let mut chance = Chance::new(state);
        let drawn = chance.next();
        self.draws.set(Some(chance.state()));
        (drawn >> 32) as u32
    }

    fn new_flows(&self, now_s: u32) -> u32 {
        let (second, count) = self.new_flows.get();
        let count = if second == now_s { count + 1 } else { 1 };
        self.new_flows.set((now_s, count));
        count
    }

    fn count(&self, event: Event) {
        self.tally(event.index());
    }

    fn reset_reason(&self) -> SendReason {
        self.reset_reason.get().expect("the reset stage is called with a reason")
    }
}
