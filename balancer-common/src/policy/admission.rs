//! The hard limit: every connection needs a reservation before its handshake, and the limit is never passed.
//!
//! A client's SYN takes a reservation in the current second's bucket of the [`Budget`], noted as a
//! [`Reservation`]. When the stack reports the socket as established, the reservation moves from its bucket
//! to the count of established connections. Buckets older than four seconds fall out, so a flood of SYNs that
//! never complete cannot block new clients. Above a cap, handshakes are noted without a reservation. A
//! handshake that has none, or has outlived its own, is decided at its final ACK, which
//! [`crate::stages::ingress`] checks while [`Budget::checks_final_ack`] says so. So the established count
//! never passes the limit, however slow a handshake is.

use crate::{
    hooks::Tables,
    records::{Budget, CHECK_FINAL_ACK_S, HANDSHAKE_WINDOW_S, Reservation, Settings, Tuple},
    verdict::Event,
    wire::Address,
};

/// Age in seconds from which a final ACK renews its reservation, so that the reservation is still valid when
/// the packet gets from the packet program to the socket.
const RENEW_S: u32 = HANDSHAKE_WINDOW_S as u32 - 1;

/// Answer to a request for a reservation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// The handshake has a reservation.
    Reserved,
    /// None now; the final ACK decides.
    Deferred,
    /// The limit is reached.
    Full,
}

impl Budget {
    /// Handshakes that hold a reservation.
    #[inline(always)]
    pub fn in_progress(&self) -> u32 {
        let [a, b, c, d] = self.handshakes;
        a.wrapping_add(b).wrapping_add(c).wrapping_add(d)
    }

    /// Clients' connections and handshakes, including connections that the programs do not count themselves.
    #[inline(always)]
    pub fn load(&self, adjust: i64) -> u32 {
        let counted = i64::from(self.established).wrapping_add(i64::from(self.in_progress()));
        let load = counted.wrapping_add(adjust);
        if load < 0 { 0 } else { load as u32 }
    }

    /// Whether the programs must check final ACKs.
    #[inline(always)]
    pub fn checks_final_ack(&self, now_s: u32) -> bool {
        now_s < self.check_final_ack_until_s
    }

    /// Empties the buckets that have fallen out of the window by `now_s`.
    #[inline(always)]
    pub fn advance(&mut self, now_s: u32) {
        let passed = now_s.wrapping_sub(self.newest_s);
        // The clock cannot go back, but a CPU may be late.
        if passed == 0 || passed > u32::MAX / 2 {
            return;
        }
        let mut outlived = 0;
        let mut step = 1;
        while step <= HANDSHAKE_WINDOW_S as u32 {
            if step <= passed
                && let Some(bucket) = self.handshakes.get_mut(slot(self.newest_s.wrapping_add(step)))
            {
                outlived |= *bucket;
                *bucket = 0;
            }
            step += 1;
        }
        self.newest_s = now_s;
        if outlived != 0 {
            self.check_final_ack_until_s = now_s.wrapping_add(CHECK_FINAL_ACK_S);
        } else if !self.checks_final_ack(now_s) {
            // Packets need no clock then.
            self.check_final_ack_until_s = 0;
        }
    }

    /// Takes a reservation for a handshake. `proven`: the client has answered our SYN-ACK, so its address is
    /// not forged and the cap does not apply.
    #[inline(always)]
    pub fn reserve(&mut self, now_s: u32, settings: &Settings, proven: bool) -> Admission {
        self.advance(now_s);
        let in_progress = self.in_progress();
        if !proven && in_progress >= settings.handshake_cap {
            self.check_final_ack_until_s = now_s.wrapping_add(CHECK_FINAL_ACK_S);
            return Admission::Deferred;
        }
        if self.load(settings.adjust) >= settings.limit {
            return Admission::Full;
        }
        // `now_s` and not `newest_s`: a late CPU notes its own second in the reservation.
        if let Some(bucket) = self.handshakes.get_mut(slot(now_s)) {
            *bucket = bucket.wrapping_add(1);
        }
        Admission::Reserved
    }

    /// Takes a reservation for a handshake under `limit`, regardless of the other handshakes in progress.
    #[inline(always)]
    pub fn reserve_within(&mut self, now_s: u32, limit: u32) -> bool {
        self.advance(now_s);
        if self.load(0) >= limit {
            return false;
        }
        if let Some(bucket) = self.handshakes.get_mut(slot(now_s)) {
            *bucket = bucket.wrapping_add(1);
        }
        true
    }

    /// Gives back the reservation of second `reserved_s`, if it still counts.
    #[inline(always)]
    pub fn release(&mut self, now_s: u32, reserved_s: u32) {
        self.advance(now_s);
        if self.newest_s.wrapping_sub(reserved_s) < HANDSHAKE_WINDOW_S as u32
            && let Some(bucket) = self.handshakes.get_mut(slot(reserved_s))
        {
            *bucket = bucket.saturating_sub(1);
        }
    }

    /// A client's socket is established; `reserved_s` is the second of its reservation, 0 if it had none.
    #[inline(always)]
    pub fn establish(&mut self, now_s: u32, reserved_s: u32) {
        if reserved_s != 0 {
            self.release(now_s, reserved_s);
        }
        self.established = self.established.wrapping_add(1);
    }
}

#[inline(always)]
const fn slot(second: u32) -> usize {
    second as usize & (HANDSHAKE_WINDOW_S - 1)
}

/// A client's SYN asks for a reservation.
#[inline(always)]
pub fn admit_syn<T: Tables>(tables: &T, settings: &Settings, key: &Tuple, isn: u32) -> Admission {
    let now_s = tables.now_s();
    if let Some(held) = tables.reservation(key) {
        // The same SYN again; a new SYN on the same port takes a new reservation instead.
        if held.isn == isn && held.reserved_s != 0 && now_s.wrapping_sub(held.reserved_s) < RENEW_S {
            return Admission::Reserved;
        }
        release(tables, settings, key, held, now_s);
    }
    reserve(tables, settings, key, isn, now_s, false)
}

/// The socket look-up of a packet that no packet program has decided: on a device without them, or the ACK of
/// a SYN cookie after its SYN was forgotten.
#[inline(always)]
pub fn admit_lookup<T: Tables>(tables: &T, settings: &Settings, key: &Tuple) -> bool {
    reserve(tables, settings, key, 0, tables.now_s(), false) == Admission::Reserved
}

/// The socket look-up of a segment that is most likely a stray: whether there is room for a connection. It
/// takes no reservation, so connections that begin this way at the same time may pass the limit, by their own
/// number.
#[inline(always)]
pub fn has_room<T: Tables>(tables: &T, settings: &Settings) -> bool {
    let now_s = tables.now_s();
    let load = tables.budget(|budget| {
        budget.advance(now_s);
        budget.load(settings.adjust)
    });
    load.is_some_and(|load| load < settings.limit)
}

/// Whether there is room for a connection of `client`. It takes no reservation either.
#[inline(always)]
pub fn has_room_for<T: Tables>(tables: &T, settings: &Settings, client: &Address) -> bool {
    let limit = settings.per_client_limit;
    let own_room = || {
        let now_s = tables.now_s();
        let load = tables.client(client, |budget| {
            budget.advance(now_s);
            budget.load(0)
        });
        load.is_none_or(|load| load < limit)
    };
    has_room(tables, settings) && (limit == 0 || own_room())
}

/// Decides a handshake's final ACK while those are checked: `true` if it may go on. `held` is the note from
/// its SYN, [`Reservation::NONE`] if there is none.
#[inline(always)]
pub fn admit_ack<T: Tables>(tables: &T, settings: &Settings, key: &Tuple, held: Reservation) -> bool {
    let now_s = tables.now_s();
    if held.reserved_s != 0 && now_s.wrapping_sub(held.reserved_s) < RENEW_S {
        return true;
    }
    release(tables, settings, key, held, now_s);
    reserve(tables, settings, key, held.isn, now_s, true) == Admission::Reserved
}

/// A client's RST ends its handshake, if the RST is in sequence.
#[inline(always)]
pub fn abandon<T: Tables>(tables: &T, settings: &Settings, key: &Tuple, seq: u32) {
    if let Some(held) = tables.reservation(key)
        && seq == held.isn.wrapping_add(1)
    {
        release(tables, settings, key, held, tables.now_s());
    }
}

/// A client's socket is established: its reservation becomes part of the count.
#[inline(always)]
pub fn establish<T: Tables>(tables: &T, settings: &Settings, key: &Tuple) {
    let now_s = tables.now_s();
    let reserved_s = match tables.reservation(key) {
        Some(held) if tables.forget(key) => held.reserved_s,
        _ => 0,
    };
    tables.budget(|budget| budget.establish(now_s, reserved_s));
    if settings.per_client_limit != 0 {
        tables.client(&key.remote, |budget| budget.establish(now_s, reserved_s));
    }
}

/// A client's socket is no longer established.
#[inline(always)]
pub fn close<T: Tables>(tables: &T, settings: &Settings, client: &Address) {
    tables.budget(|budget| budget.established = budget.established.wrapping_sub(1));
    if settings.per_client_limit != 0 {
        // Saturating: connections from before the limit was set may not be counted.
        tables.client(client, |budget| budget.established = budget.established.saturating_sub(1));
    }
}

#[inline(always)]
fn release<T: Tables>(tables: &T, settings: &Settings, key: &Tuple, held: Reservation, now_s: u32) {
    // If two CPUs get here, only the one that removes the note gives the reservation back.
    if tables.forget(key) && held.reserved_s != 0 {
        tables.budget(|budget| budget.release(now_s, held.reserved_s));
        if settings.per_client_limit != 0 {
            tables.client(&key.remote, |budget| budget.release(now_s, held.reserved_s));
        }
    }
}

#[inline(always)]
fn reserve<T: Tables>(
    tables: &T,
    settings: &Settings,
    key: &Tuple,
    isn: u32,
    now_s: u32,
    proven: bool,
) -> Admission {
    if !tables.reserve(key, &Reservation { reserved_s: now_s, isn, ack: 0 }, false) {
        // Another CPU has just reserved for a copy of the same packet.
        return if tables.reservation(key).is_some() { Admission::Reserved } else { Admission::Deferred };
    }
    let mut admission =
        tables.budget(|budget| budget.reserve(now_s, settings, proven)).unwrap_or(Admission::Full);
    let limit = settings.per_client_limit;
    if limit != 0 && admission == Admission::Reserved {
        // If no record is free, only the overall limit applies.
        let reserved =
            tables.client(&key.remote, |budget| budget.reserve_within(now_s, limit)).unwrap_or(true);
        if !reserved {
            tables.budget(|budget| budget.release(now_s, now_s));
            tables.count(Event::ClientFull);
            admission = Admission::Full;
        }
    }
    match admission {
        Admission::Reserved => {}
        Admission::Deferred => {
            tables.count(Event::Unreserved);
            tables.reserve(key, &Reservation { reserved_s: 0, isn, ack: 0 }, true);
        }
        Admission::Full => {
            tables.forget(key);
        }
    }
    admission
}
