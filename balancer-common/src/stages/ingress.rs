//! A packet arrives: which stage handles it?

use crate::{
    hooks::{Packet, Socket, Tables},
    policy::admission,
    records::{Class, Kind, Reservation, Settings, Tuple},
    stages::Stage,
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Ethernet, Family, Ipv4, Ipv6, Port, Tcp,
        segment::{Parsed, Segment, is_fragment, parse},
    },
};

/// Decides for a packet that arrived on an API-facing interface. It changes nothing of the packet: the kernel copies the head
/// of every packet that it shares with a sender before a program that can write (`bpf_unclone_prologue`).
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    if settings.active == 0 {
        return Verdict::Pass(PassReason::Other);
    }
    match parse(packet) {
        Parsed::Tcp(segment) => tcp(tables, settings, &segment),
        Parsed::Icmp(family) if is_error(packet, family) => Verdict::Next(Stage::Icmp),
        Parsed::Other if is_fragment(packet) => Verdict::Next(Stage::Fragment),
        Parsed::Icmp(_) | Parsed::Other => Verdict::Pass(PassReason::Other),
    }
}

/// Whether this host may be the entry of a packet, by its ports alone: a segment between a client and the API
/// port, or an owner's answer. An owner's packets, and ICMP errors, are decided at the TC hook only.
#[inline(always)]
pub fn is_for_entry<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    let Some(settings) = tables.settings() else { return false };
    settings.active != 0
        && ports(packet).is_some_and(|[source, destination]| {
            !settings.is_relay_port(destination)
                && (destination == settings.api_port || settings.is_peer_port(source))
        })
}

/// The ports, if it is TCP and its IP header has no options; [`parse`] checks whether it is well-formed.
#[inline(always)]
fn ports<P: Packet>(packet: &P) -> Option<[Port; 2]> {
    let ethernet: Ethernet = packet.read(0)?;
    if ethernet.ethertype == Ethernet::IPV4 {
        let ip: Ipv4 = packet.read(Family::L3)?;
        if ip.protocol == Tcp::PROTOCOL { packet.read(Family::V4.l4()) } else { None }
    } else if ethernet.ethertype == Ethernet::IPV6 {
        let ip: Ipv6 = packet.read(Family::L3)?;
        if ip.next_header == Tcp::PROTOCOL { packet.read(Family::V6.l4()) } else { None }
    } else {
        None
    }
}

#[inline(always)]
fn tcp<T: Tables>(tables: &T, settings: &Settings, segment: &Segment) -> Verdict {
    let to_api = segment.destination_port == settings.api_port;
    let to_relay = settings.is_relay_port(segment.destination_port);
    if !to_api && !to_relay && !settings.is_peer_port(segment.source_port) {
        return Verdict::Pass(PassReason::Other);
    }
    if segment.opens() && (to_api || to_relay) {
        return Verdict::Next(if to_api { Stage::ClientSyn } else { Stage::OwnerSyn });
    }
    if !to_api {
        return Verdict::Next(Stage::Relayed);
    }
    let key = arriving(segment);
    // Half-open first: another CPU that completes a handshake adds the live record before it removes the half-open one.
    if is_half_open(tables, &key) {
        Verdict::Next(Stage::Handshake)
    } else if arriving_live(tables, &key).is_some() {
        Verdict::Next(Stage::Relayed)
    } else {
        local(tables, settings, segment, &key)
    }
}

/// The live flow of an arriving segment. A record of leaving packets is none: its client is far away, and sends to the
/// entry.
#[inline(always)]
pub fn arriving_live<T: Tables>(tables: &T, key: &Tuple) -> Option<T::Flow> {
    tables.live(key).filter(|flow| !flow.is(Kind::Divert))
}

/// Whether an arriving segment belongs to a flow before the end of its handshake.
#[inline(always)]
pub fn is_half_open<T: Tables>(tables: &T, key: &Tuple) -> bool {
    tables.half_open(key).is_some_and(|flow| !flow.is(Kind::Divert))
}

/// A segment to the API port that belongs to a connection served here, or to none.
#[inline(always)]
pub fn local<T: Tables>(tables: &T, settings: &Settings, segment: &Segment, key: &Tuple) -> Verdict {
    if segment.has(Tcp::RST) {
        admission::abandon(tables, settings, key, segment.seq);
        return Verdict::Pass(PassReason::Local);
    }
    if settings.grace_until_s == 0 && !tables.may_check_final_ack() {
        return Verdict::Pass(PassReason::Local);
    }
    let now_s = tables.now_s();
    if (settings.in_grace_period(now_s) || tables.checks_final_ack(now_s))
        && tables.class_of(&segment.source).is_clients()
    {
        let held = tables.reservation(key).unwrap_or(Reservation::NONE);
        let socket =
            if held == Reservation::NONE { tables.socket(key, segment.family) } else { Socket::Handshake };
        match socket {
            // Only the client knows the number of this host's answer; the stack refuses all others.
            Socket::Handshake if held.ack != 0 && held.ack != segment.ack => {}
            Socket::Handshake if !admission::admit_ack(tables, settings, key, held) => {
                return Verdict::Reset(SendReason::Late);
            }
            // It may belong to a relay, and the stack would reset it.
            Socket::None | Socket::Listener
                if settings.upgrading(now_s) && tables.class_of(&segment.destination).is(Class::Own) =>
            {
                return Verdict::Drop(DropReason::GracePeriod);
            }
            Socket::None | Socket::Listener | Socket::Handshake | Socket::Connection => {}
        }
    }
    Verdict::Pass(PassReason::Local)
}

/// The key of an arriving segment's connection.
#[inline(always)]
pub fn arriving(segment: &Segment) -> Tuple {
    Tuple {
        remote: segment.source,
        local: segment.destination,
        remote_port: segment.source_port,
        local_port: segment.destination_port,
    }
}

/// Whether an ICMP message reports an error (RFC 792; RFC 4443: types below 128).
#[inline(always)]
fn is_error<P: Packet>(packet: &P, family: Family) -> bool {
    let kind: Option<u8> = packet.read(family.l4());
    match (family, kind) {
        (Family::V4, Some(kind)) => kind == 3 || kind == 11 || kind == 12,
        (Family::V6, Some(kind)) => kind != 0 && kind < 5,
        (Family::V4 | Family::V6, None) => false,
    }
}
