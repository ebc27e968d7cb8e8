//! A client's controller is picked: the client gets a reservation here, or a relay.
//!
//! Relayed SYNs leave through [`crate::stages::relay_syn`], and arrive in [`crate::stages::owner_syn`].

use crate::{
    hooks::{Exchange, Packet, Tables},
    policy::admission::{self, Admission},
    records::{Flow, Kind, Settings, Tuple},
    stages::{Stage, choose::relay_address, ingress::arriving},
    verdict::{PassReason, SendReason, Verdict},
    wire::{
        Port,
        segment::{Parsed, Segment, parse},
    },
};

/// Relay source ports are at least this: lower ports belong to services.
const FIRST_SOURCE_PORT: u32 = 1024;
/// The longest pause of an agent that all controllers refused: two minutes and a tenth (juju
/// `worker/apicaller`), and the dial.
const BACK_OFF_NS: u64 = 150_000_000_000;
/// Attempts to draw a relay source port. With half of the 64,512 in use, one in 65,536 SYNs finds none.
const DRAWS: u32 = 16;

/// Carries out the pick of [`crate::stages::choose`] for a client's SYN.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let key = arriving(&segment);
    let own = u32::from(settings.own);
    let (picked, relays) = tables.pick_scratch().map_or((own, 0), |field| (field.picked, field.relays));
    if refuses(tables, &segment) {
        Verdict::Reset(SendReason::Steered)
    } else if picked == own || relays == 0 {
        serve(tables, settings, &segment, &key, PassReason::Chosen)
    } else {
        relay_to(packet.ifindex(), tables, settings, &segment, &key, picked as usize)
    }
}

/// Whether the client must find the picked controller by itself. If all controllers refused it, it would wait
/// for long. So one controller, the same for all entries, never refuses it, and none refuses it twice. A
/// controller that has served the client does not refuse it either: an agent's second connection goes where
/// its first did.
#[inline(always)]
fn refuses<T: Tables>(tables: &T, segment: &Segment) -> bool {
    let Some((elsewhere, home)) = tables
        .pick_scratch()
        .filter(|field| field.refuses != 0)
        .map(|field| (field.picked != field.own, field.home == field.own))
    else {
        return false;
    };
    let now_ns = tables.now_ns();
    let was_refused =
        tables.recently_refused(&segment.source).is_some_and(|at| now_ns.wrapping_sub(at) < BACK_OFF_NS);
    if !was_refused {
        tables.note_refused(&segment.source, now_ns);
    }
    elsewhere && !home && !was_refused
}

/// Serves the client here, if it gets a reservation.
#[inline(always)]
pub fn serve<T: Tables>(
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
    why: PassReason,
) -> Verdict {
    match admission::admit_syn(tables, settings, key, segment.seq) {
        Admission::Reserved | Admission::Deferred => Verdict::Pass(why),
        Admission::Full => Verdict::Reset(SendReason::Full),
    }
}

/// Sets up a relay to the controller at `index`.
#[inline(always)]
fn relay_to<T: Tables>(
    came_in: u32,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
    index: usize,
) -> Verdict {
    let (Some(owner), Some(own)) = (tables.controller(index), tables.controller(settings.own as usize))
    else {
        return serve(tables, settings, segment, key, PassReason::NoRoom);
    };
    let now_s = tables.now_s();
    let (here, there) = (relay_address(own, segment.family), relay_address(owner, segment.family));
    let client = (segment.source, segment.source_port);
    let dialled = (segment.destination, segment.destination_port);
    // A bridge's port may have brought it, and the port has no neighbours.
    let came_in = if settings.only_way == 0 { came_in } else { settings.only_way };
    let back = Flow::new(Kind::Return, index as u8, dialled, client, came_in, segment.seq, now_s);
    let start = tables.random();
    let mut draw = 0;
    while draw < DRAWS {
        // An odd stride visits every port before it repeats one.
        let port = start.wrapping_add(draw.wrapping_mul(4_093)) % (65_536 - FIRST_SOURCE_PORT);
        let port = Port::new(port.wrapping_add(FIRST_SOURCE_PORT) as u16);
        let back_key = Tuple { remote: *there, local: *here, remote_port: owner.relay_out, local_port: port };
        if tables.live(&back_key).is_none() && tables.insert_half_open(&back_key, &back, false) {
            let to = (*there, owner.relay_out);
            let mut forward =
                Flow::new(Kind::Forward, index as u8, (*here, port), to, came_in, segment.seq, now_s);
            forward.next = segment.seq.wrapping_add(1);
            if !tables.insert_half_open(key, &forward, true) {
                tables.remove_half_open(&back_key);
                break;
            }
            tables.exchanged(index, Exchange::Sent);
            return Verdict::Next(Stage::RelaySyn);
        }
        draw += 1;
    }
    serve(tables, settings, segment, key, PassReason::NoRoom)
}
