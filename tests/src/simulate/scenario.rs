//! The courses that every rule goes through.

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub clients: u32,
    /// Clients dial for the first time within so long, seconds.
    pub arrive_s: u64,
    pub length_s: u64,
    /// Mean life of a connection, seconds; then its client comes back.
    pub life_s: f64,
    /// By controller.
    pub weights: Vec<f64>,
    /// Part of the clients that know the first controller's address alone, percent.
    pub fixed_percent: u32,
    pub reports: Reports,
    pub faults: Vec<Fault>,
    /// Whether relays need be few: clients come evenly, and the shares are equal.
    pub is_even: bool,
    /// Whether the promised bound of the peak holds.
    pub is_bounded: bool,
}

/// The way of the controllers' reports.
#[derive(Clone, Copy, Debug)]
pub struct Reports {
    pub period_ms: u64,
    /// Whether a moved load is reported at once, as the agent does; else each period alone.
    pub pushes: bool,
    /// A report takes from half to one and a half of this, milliseconds.
    pub delay_ms: u64,
    pub lost_percent: u32,
}

/// As in a network at rest.
const SOUND: Reports = Reports { period_ms: 100, pushes: true, delay_ms: 2, lost_percent: 0 };

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub controller: usize,
    pub at_s: u64,
    pub for_s: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The host is away: its connections end, and its maps are new afterwards.
    Reboot,
    /// Its agent alone: the programs go on.
    Agent,
}

/// The most clients of a reboot: Juju's own logins bound how fast they may be closed. The largest count that was seen.
const FIELD: u32 = 4_300;

/// All scenarios with `clients` and `controllers`; `quick`: in less simulated time.
pub fn all(clients: u32, controllers: usize, quick: bool) -> Vec<Scenario> {
    let length_s = if quick { 120 } else { 240 };
    let even = Scenario {
        name: "even",
        about: "clients shuffle their addresses, arrive within a minute, and come back when their connections end",
        clients,
        arrive_s: 60,
        length_s,
        life_s: 600.0,
        weights: vec![1.0; controllers],
        fixed_percent: 0,
        reports: SOUND,
        faults: Vec::new(),
        is_even: true,
        is_bounded: true,
    };
    let fewer = (clients / 10).max(clients.min(3_000));
    let weights = [1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 1.0];
    vec![
        even.clone(),
        Scenario {
            name: "weights",
            about: "the same with unequal weights",
            weights: weights.iter().cycle().take(controllers).copied().collect(),
            is_even: false,
            ..even.clone()
        },
        Scenario {
            name: "stale",
            about: "reports come every 500 ms alone, are 200 ms on their way, and one in five is lost",
            clients: fewer,
            reports: Reports { period_ms: 500, pushes: false, delay_ms: 200, lost_percent: 20 },
            ..even.clone()
        },
        Scenario {
            name: "one-address",
            about: "all clients know the first controller alone",
            clients: fewer,
            fixed_percent: 100,
            is_even: false,
            ..even.clone()
        },
        Scenario {
            name: "mixed",
            about: "a fifth of the clients knows the first controller alone",
            clients: fewer,
            fixed_percent: 20,
            is_even: false,
            ..even.clone()
        },
        Scenario {
            name: "agents",
            about: "every agent restarts once, away for two seconds",
            clients: fewer,
            faults: (0..controllers)
                .map(|controller| Fault {
                    kind: Kind::Agent,
                    controller,
                    at_s: 65 + 7 * controller as u64,
                    for_s: 2,
                })
                .collect(),
            ..even.clone()
        },
        Scenario {
            name: "reboot",
            about: "a controller reboots within a minute; connections live for two hours",
            clients: clients.min(FIELD),
            length_s: if quick { 900 } else { 1_800 },
            life_s: 7_200.0,
            faults: vec![Fault { kind: Kind::Reboot, controller: controllers - 1, at_s: 120, for_s: 60 }],
            is_bounded: false,
            is_even: false,
            ..even
        },
    ]
}
