//! Sockets, on the host: look-ups of a listener, and changes of a socket's state. The kernel has no test run for the
//! programs `admit` and `track`, which read their context and leave the rest to the decisions tried here.
//!
//! A row compares the answer, the whole counter delta, and all tables afterwards; for IPv4 and for IPv6.
#![expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]

mod lookup;
mod relay;
mod row;
mod state;

use crate::row::prove;

#[test]
fn look_ups_that_are_left_to_the_kernel() {
    prove(lookup::left_alone);
}

#[test]
fn look_ups_with_a_reservation() {
    prove(lookup::reserved);
}

#[test]
fn look_ups_that_ingress_would_have_spared() {
    prove(lookup::relayed);
}

#[test]
fn look_ups_without_a_reservation() {
    prove(lookup::unreserved);
}

#[test]
fn changes_that_do_not_count() {
    prove(state::ignored);
}

#[test]
fn sockets_become_established() {
    prove(state::established);
}

#[test]
fn sockets_close() {
    prove(state::closed);
}

#[test]
fn clients_whose_relay_failed_are_served() {
    prove(relay::failed);
}

#[test]
fn probes_are_no_clients() {
    prove(relay::probes);
}
