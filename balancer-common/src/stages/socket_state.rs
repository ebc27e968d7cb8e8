//! A TCP socket of this host changes its state: the exact count of the API's connections.
//!
//! Runs at `sock_ops` on the cgroup root, which sees the sockets of all network namespaces.

use crate::{
    hooks::{Exchange, SocketEvent, Tables},
    policy::admission,
    records::{Flow, Network, Settings, Tracked, Tuple},
    stages::flow,
    verdict::Event,
    wire::Port,
};

/// States of a socket (kernel `include/net/tcp_states.h`) in which a connection counts.
const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;

/// The operation that `sock_ops` is called for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// The socket begins to listen.
    Listen,
    /// A handshake that the other end began is complete.
    Established,
    /// A tracked socket ([`Tables::track`]) enters this state.
    State(u32),
    Other,
}

/// The rest, for the program to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    Done,
    /// jujud listens: the socket goes into the map LISTENERS, so that relayed connections go to it.
    NoteListener,
    /// The connection cannot be counted: a log entry.
    ReportUntracked,
}

/// Decides about a change of a socket's state.
#[inline(always)]
pub fn decide<T: Tables, E: SocketEvent>(tables: &T, event: &E) -> Action {
    let Some(settings) = tables.settings() else { return Action::Done };
    // The port first, as it alone rules most sockets out, and the namespace costs a call of a helper.
    let port = event.local_port();
    if settings.active == 0 || (port != settings.api_port && !settings.is_relay_port(port)) {
        return Action::Done;
    }
    if !event.is_in_namespace(settings.netns) {
        return Action::Done;
    }
    match event.operation() {
        Operation::Listen if port == settings.api_port => Action::NoteListener,
        Operation::Established => established(tables, settings, event, port),
        Operation::State(state) => {
            changed(tables, settings, event, state);
            Action::Done
        }
        Operation::Listen | Operation::Other => Action::Done,
    }
}

#[inline(always)]
fn established<T: Tables, E: SocketEvent>(tables: &T, settings: &Settings, event: &E, port: Port) -> Action {
    let [remote, local] = event.addresses();
    let remote_port = event.remote_port();
    let key = Tuple { remote, local, remote_port, local_port: port };
    // The entry's own probe is no client, although it has a client's address.
    let is_probe = port != settings.api_port
        && tables
            .live(&key)
            .or_else(|| tables.half_open(&key))
            .is_some_and(|flow| flow.state & Flow::PROBE != 0);
    let client = !is_probe && tables.class_of(&remote).is_clients();
    let tracked = Tracked { since_s: tables.now_s(), client: u8::from(client), seeded: 0, pad: [0; 2] };
    if !tables.track(event.cookie(), &tracked) {
        tables.count(Event::Untracked);
        return Action::ReportUntracked;
    }
    if client {
        admission::establish(tables, settings, &key);
        tables.tell_agent();
        if port == settings.api_port {
            note_served(tables, &key);
        }
    } else {
        if is_probe {
            tables.forget(&key);
        }
        tables.budget(|budget| budget.exempt = budget.exempt.wrapping_add(1));
    }
    Action::Done
}

/// A client is served here that dialled here. If it was relayed before, and got no connection, then its network is not
/// relayed there for some time: its own handshake with this host proves that its address is not forged.
#[inline(always)]
fn note_served<T: Tables>(tables: &T, key: &Tuple) {
    flow::note_client(tables, key);
    let Some((owner, opposite)) = tables
        .half_open(key)
        .filter(|flow| flow.state & Flow::REPEATED != 0)
        .map(|flow| (flow.controller, flow.opposite(key)))
    else {
        return;
    };
    tables.remove_half_open(key);
    tables.remove_half_open(&opposite);
    tables.exchanged(owner as usize, Exchange::Failed(tables.now_ns()));
    if let Some(mut network) = tables.network(&Network::of(&key.remote)) {
        network.barred |= 1u16.wrapping_shl(u32::from(owner));
    }
}

#[inline(always)]
fn changed<T: Tables, E: SocketEvent>(tables: &T, settings: &Settings, event: &E, state: u32) {
    let [remote, _] = event.addresses();
    if state == ESTABLISHED || state == CLOSE_WAIT {
        return;
    }
    let cookie = event.cookie();
    let Some(tracked) = tables.tracked(cookie) else { return };
    // Seeded, and marked by the programs of an older version: these programs do not count it, the agent does.
    if tracked.seeded != 0 || !tables.untrack(cookie) {
        return;
    }
    if tracked.client == 0 {
        tables.budget(|budget| budget.exempt = budget.exempt.wrapping_sub(1));
    } else {
        admission::close(tables, settings, &remote);
        tables.tell_agent();
    }
}
