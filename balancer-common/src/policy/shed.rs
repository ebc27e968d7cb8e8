//! Shedding: how many established connections this controller closes, and why not more.
//!
//! Closed clients come back elsewhere, because a pick ([`crate::policy::pick`]) sends them to the controller
//! with the most room. Only a controller above its target closes connections, never below the target, and
//! never faster than the other controllers can log the clients in. A client that was closed and has not come
//! back is missing from every count for a while. For [`RETURN_MS`] the report of the controller that closed
//! it adds it to the mean ([`ControllerLoad::closing`]), so no delay up to that makes a controller shed below
//! the mean.
//!
//! Rates are in 1/1000 connection a second.

use core::fmt;

/// Closed clients are back within this time, milliseconds: agents wait 3 s ± 10 %, the CLI 2 s.
pub const RETURN_MS: u64 = 30_000;
/// Younger connections are not shed, seconds: closing one costs its agent a longer back-off, and a connection
/// of a minute resets the back-off.
pub const MIN_AGE_S: u32 = 60;
/// This controller must have been ready for this long before it closes anything, milliseconds.
pub const SETTLED_MS: u64 = 60_000;
/// A view older than this is too old for shedding, milliseconds: ten reports.
pub const STALE_MS: u64 = 1_000;
/// Shedding ends within this part of the target, 1/1000: half of the promised balance, because receivers lack
/// the connections that donors keep.
const DONE_PERMILLE: u64 = 20;
/// At most this part of the mean is closed a second, 1/1000, or [`FLOOR_MILLI`] where that is more.
const MEAN_PERMILLE: u64 = 5;
/// What even a small cluster closes a second, 1/1000: 0.5 % of a mean of 160 would take seven minutes.
const FLOOR_MILLI: u64 = 2_000;
/// To a pick, loads that differ by less are equal.
const LEVEL: u64 = 16;
/// Part of the excess that is closed a second, 1/1000: a third within the second by which counts are late.
const GAIN_PERMILLE: u64 = 300;

/// The operator's limits on shedding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Shedding begins above this part of the target, 1/1000.
    pub threshold_permille: u64,
    /// Shedding begins this many connections above the target.
    pub min_excess: u64,
    /// Most connections closed a second, 1/1000; 0: no such limit.
    pub max_rate_milli: u64,
    /// Logins a second that a controller admits, 1/1000.
    pub login_rate_milli: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { threshold_permille: 1_200, min_excess: 50, max_rate_milli: 0, login_rate_milli: 4_000 }
    }
}

/// A controller, as shedding sees it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ControllerLoad {
    /// Its client connections.
    pub load: u64,
    /// Most client connections that it admits.
    pub limit: u64,
    /// Its weight: its share against the others', 1024 for an ordinary one.
    pub weight: u64,
    /// Whether it takes clients: ready, and not draining.
    pub takes: bool,
    /// Whether relays from here reach it, over every family that clients here use. Where they do not, a closed client that
    /// knows this controller alone comes back here.
    pub reachable: bool,
    /// Whether it has been ready for long enough to count on it.
    pub settled: bool,
    /// Milliseconds since its report.
    pub age_ms: u64,
    /// Connections that it has closed within [`RETURN_MS`].
    pub closing: u64,
    /// Whether it is shedding.
    pub sheds: bool,
}

/// The input of a decision.
#[derive(Clone, Copy, Debug)]
pub struct ShedInput<'a> {
    /// This controller.
    pub own: &'a ControllerLoad,
    /// The other controllers that are not absent.
    pub others: &'a [ControllerLoad],
    /// Milliseconds since this controller last changed its readiness.
    pub settled_ms: u64,
    /// Clients that were closed came back here: close none for a while.
    pub in_vain: bool,
    /// Set while this controller is being emptied.
    pub drain: Option<Drain>,
    /// Begin although the load is below the threshold, and count on controllers that have just become ready.
    pub now: bool,
}

impl ShedInput<'_> {
    /// The controllers that closed clients can go to.
    fn takers(&self) -> impl Iterator<Item = &ControllerLoad> + Clone {
        // In this controller's own first minute none is known for longer.
        let counts_on_all = self.now || self.drain.is_some() || self.settled_ms < SETTLED_MS;
        let counts =
            move |other: &&ControllerLoad| other.takes && other.reachable && (other.settled || counts_on_all);
        self.others.iter().filter(counts)
    }
}

/// How a controller is being emptied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Drain {
    /// Its load at the beginning.
    pub from_load: u64,
    /// Milliseconds given.
    pub within_ms: u64,
    /// Milliseconds left.
    pub left_ms: u64,
}

impl Drain {
    /// The load that a steady drain would have reached by now.
    fn even(&self) -> u64 {
        self.from_load.saturating_mul(self.left_ms.min(self.within_ms)).div_ceil(self.within_ms.max(1))
    }
}

/// Why nothing is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rest {
    /// The load is not far enough above the target to begin.
    Balanced,
    /// Closed clients are not back yet, and may be the ones missing elsewhere.
    Returning,
    /// A controller's report is too old.
    StaleView,
    /// This controller became ready less than [`SETTLED_MS`] ago.
    JustReady,
    /// Closed clients came back here.
    InVain,
    /// No other controller has room.
    NoRoom,
}

/// The bound that sets the rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bound {
    /// A part of the excess.
    Gain,
    /// A part of the mean.
    Mean,
    /// The logins that the other controllers admit.
    Logins,
    /// The operator's own limit.
    MaxRate,
    /// The time given for draining.
    Time,
}

/// The decision, and the reason for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Connections that this controller should have.
    pub target: u64,
    /// Connections above the target, as far as other controllers have room for them.
    pub excess: u64,
    /// Connections to close a second, 1/1000.
    pub rate_milli: u64,
    /// Most connections to close now, however few were closed before.
    pub most: u64,
    /// The bound that keeps the rate from being higher, or the reason for closing nothing.
    pub because: Result<Bound, Rest>,
}

/// Decides about shedding, with hysteresis.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Shedder {
    sheds: bool,
    last_ms: Option<u64>,
    /// Due and not closed, 1/1,000,000 connection.
    due_micro: u64,
}

impl Shedder {
    /// Whether shedding has begun and not ended.
    pub fn sheds(&self) -> bool {
        self.sheds
    }

    /// The number of connections to close at `now_ms`, and the plan behind it.
    pub fn step(&mut self, now_ms: u64, scene: &ShedInput, rules: &Rules) -> (u64, Plan) {
        let plan = plan(scene, rules, self.sheds);
        let begun = plan.because.is_ok();
        // A pause does not end shedding: the load may come below the threshold.
        self.sheds = begun || (self.sheds && plan.because != Err(Rest::Balanced));
        let elapsed_ms = now_ms.saturating_sub(self.last_ms.unwrap_or(now_ms));
        self.last_ms = Some(now_ms);
        if !begun {
            self.due_micro = 0;
            return (0, plan);
        }
        // If the caller pauses, the missed closings are not made up in one burst.
        self.due_micro = self.due_micro.saturating_add(plan.rate_milli.saturating_mul(elapsed_ms.min(2_000)));
        let close = (self.due_micro / 1_000_000).min(plan.most);
        self.due_micro -= close * 1_000_000;
        (close, plan)
    }
}

/// The plan for `scene`; `sheds`: shedding has begun already.
pub fn plan(scene: &ShedInput, rules: &Rules, sheds: bool) -> Plan {
    let own = scene.own;
    let drains = scene.drain.is_some();
    let over_limit = own.load > own.limit;
    let takers = || scene.takers();
    let mut weights: u64 = takers().map(|taker| taker.weight.max(1)).sum();
    if !drains {
        weights += own.weight.max(1);
    }
    // The other controllers keep the clients they have.
    let mut clients: u64 = takers().map(|taker| taker.load).sum::<u64>() + own.load + own.closing;
    clients += scene.others.iter().map(|other| other.closing).sum::<u64>();
    let share_of = |clients: u64, weight: u64| clients.saturating_mul(weight.max(1)).div_ceil(weights.max(1));
    let share = |weight: u64| share_of(clients, weight);
    let is_donor = |target: u64| {
        own.load * 1_000 > target * rules.threshold_permille && own.load > target + rules.min_excess
    };
    let fair = share(own.weight);
    let donor = is_donor(fair) || ((sheds || scene.now) && own.load > fair + done(fair));
    let target = match (drains, over_limit, donor) {
        (true, ..) => 0,
        (false, true, false) => own.limit,
        (false, ..) => fair.min(own.limit),
    };
    let room_of = |taker: &ControllerLoad| share(taker.weight).min(taker.limit).saturating_sub(taker.load);
    let on_their_way = clients - own.load - takers().map(|taker| taker.load).sum::<u64>();
    let anywhere = drains || target == own.limit;
    let room = if anywhere {
        takers().map(|taker| taker.limit.saturating_sub(taker.load)).sum::<u64>()
    } else {
        takers().map(room_of).sum::<u64>()
    };
    let room = room.saturating_sub(on_their_way);
    let above = own.load.saturating_sub(target);
    let excess = above.min(room);
    let rest = |rest| Plan { target, excess, rate_milli: 0, most: 0, because: Err(rest) };

    if !(drains || over_limit || donor) {
        let without = share_of(clients - on_their_way, own.weight);
        let may_go_on = sheds && own.load > without + done(without);
        return rest(if may_go_on { Rest::Returning } else { Rest::Balanced });
    }
    if above == 0 {
        return rest(Rest::Balanced);
    }
    if takers().any(|other| other.age_ms > STALE_MS) {
        return rest(Rest::StaleView);
    }
    if scene.settled_ms < SETTLED_MS && !drains && !scene.now {
        return rest(Rest::JustReady);
    }
    if scene.in_vain && !drains && !over_limit {
        return rest(Rest::InVain);
    }
    if excess == 0 {
        return rest(Rest::NoRoom);
    }
    // Picks fill the emptiest controllers first: only those with about the least load share the logins.
    let filled = |taker: &ControllerLoad| taker.load * 1_024 / taker.weight.max(1);
    let open = || takers().filter(|taker| taker.load < taker.limit);
    let emptiest = open().map(filled).min().unwrap_or(0);
    let alike = emptiest + LEVEL;
    let receivers = open().filter(|taker| filled(taker) <= alike && (anywhere || room_of(taker) > 0)).count();
    let receivers = receivers.max(1) as u64;
    let donors = 1 + scene.others.iter().filter(|other| other.sheds).count() as u64;
    let logins = rules.login_rate_milli.saturating_mul(receivers) / donors;
    let mean = clients * 1_024 / weights.max(1);
    let mut bounds = [
        (Bound::Logins, logins),
        (Bound::MaxRate, u64::MAX),
        (Bound::Gain, u64::MAX),
        (Bound::Mean, u64::MAX),
    ];
    if rules.max_rate_milli != 0 {
        bounds[1].1 = rules.max_rate_milli;
    }
    let mut most = excess;
    if let Some(drain) = scene.drain {
        // Closing one connection may end several: an agent has two, and gives up both.
        most = most.min(own.load.saturating_sub(drain.even()));
        bounds[2] = (Bound::Time, own.load.saturating_mul(1_200_000) / drain.left_ms.max(1_000));
    } else {
        // Half of the logins stay free for clients that come by themselves.
        bounds[0].1 = logins / 2;
        bounds[2].1 = (excess * GAIN_PERMILLE).max(200);
        bounds[3].1 = (mean * MEAN_PERMILLE).max(FLOOR_MILLI);
    }
    let (bound, rate_milli) = bounds.into_iter().min_by_key(|(_, rate)| *rate).unwrap_or((Bound::Gain, 0));
    Plan { target, excess, rate_milli, most, because: Ok(bound) }
}

fn done(target: u64) -> u64 {
    target * DONE_PERMILLE / 1_000
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balanced => "this controller is near enough to its share",
            Self::Returning => "those that were closed are not back yet",
            Self::StaleView => "another controller's report is too old to go by",
            Self::JustReady => "this controller or its agent started within the last minute",
            Self::InVain => "the clients that were closed came back here; do they know this controller alone, and do relays work?",
            Self::NoRoom => "no other controller that relays reach has room",
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gain => "the nearer the balance, the slower",
            Self::Mean => "0.5 % of the mean a second, or two, is the most",
            Self::Logins => "policy.login_rate: the others log in no more a second",
            Self::MaxRate => "policy.max_rate",
            Self::Time => "evenly over the time given",
        })
    }
}

#[cfg(test)]
mod tests;
