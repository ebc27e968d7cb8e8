//! Compares the programs' count with the kernel's list of sockets, and corrects it.
//!
//! The programs track each socket that they count by its cookie. Sockets that were open before the programs were
//! attached are tracked here as *seeded*, and [`Settings::adjust`] counts them. The kernel reports state changes only
//! for a socket on which `sock_ops` asked for them, so nobody sees a seeded one close: while there are any, the agent
//! audits every second.
//!
//! [`Settings::adjust`]: balancer_common::records::Settings::adjust

use std::collections::{HashMap, HashSet};

use balancer_common::records::Tracked;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Present {
    pub cookie: u64,
    /// Whether its peer is a client, not a controller or exempt.
    pub client: bool,
}

/// The outcome of an audit: changes to make, and the numbers once they are made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Findings {
    /// Sockets to track as seeded.
    pub seed: Vec<Present>,
    /// Cookies to track no longer.
    pub forget: Vec<u64>,
    pub seeded_clients: u32,
    /// Seeded sockets of controllers and exempt addresses.
    pub seeded_exempt: u32,
    /// By how many clients the programs' count was too high (positive) or too low (negative).
    pub drift: i64,
}

impl Findings {
    fn count_seeded(&mut self, client: bool) {
        self.seeded_clients += u32::from(client);
        self.seeded_exempt += u32::from(!client);
    }
}

/// Finds the differences that two audits in a row have seen.
///
/// One audit proves nothing: a socket may open or close between the read of the list and that of the map.
#[derive(Debug, Default)]
pub struct Audit {
    /// Cookies that the last audit saw in the list alone, and in the map alone.
    missing: HashSet<u64>,
    surplus: HashSet<u64>,
    /// Minus one for each client that the programs count for ever, because they missed its end.
    corrected: i64,
}

impl Audit {
    /// Compares the kernel's list with the tracked sockets. `first`: nothing was counted before, so every socket that
    /// is not tracked is seeded at once.
    pub fn audit(&mut self, present: &[Present], tracked: &HashMap<u64, Tracked>, first: bool) -> Findings {
        let mut findings = Findings::default();
        let (mut missing, mut surplus) = (HashSet::new(), HashSet::new());
        let listed: HashSet<u64> = present.iter().map(|socket| socket.cookie).collect();
        for socket in present.iter().filter(|socket| !tracked.contains_key(&socket.cookie)) {
            if missing.insert(socket.cookie) && (first || self.missing.contains(&socket.cookie)) {
                findings.seed.push(*socket);
                findings.count_seeded(socket.client);
                findings.drift -= i64::from(!first && socket.client);
            }
        }
        for (&cookie, &Tracked { client, seeded, .. }) in tracked {
            let (client, seeded) = (client != 0, seeded != 0);
            let is_gone = !listed.contains(&cookie);
            if is_gone {
                surplus.insert(cookie);
            }
            if is_gone && (seeded || self.surplus.contains(&cookie)) {
                findings.forget.push(cookie);
                let missed_end = i64::from(client && !seeded);
                findings.drift += missed_end;
                self.corrected -= missed_end;
            } else if seeded {
                findings.count_seeded(client);
            }
        }
        (self.missing, self.surplus) = (missing, surplus);
        findings
    }

    /// [`Settings::adjust`](balancer_common::records::Settings::adjust) after an audit.
    pub fn adjust(&self, findings: &Findings) -> i64 {
        i64::from(findings.seeded_clients) + self.corrected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cookies, each followed by `e` if the peer is exempt and by `s` if the socket is seeded.
    fn sockets(text: &str) -> impl Iterator<Item = (u64, bool, bool)> {
        text.split_whitespace().map(|word| {
            let cookie = word.trim_end_matches(['e', 's']);
            (cookie.parse().unwrap(), !word.contains('e'), word.contains('s'))
        })
    }

    fn shown(audit: &Audit, findings: &Findings) -> String {
        let exempt = |client| if client { "" } else { "e" };
        let seed = findings.seed.iter().map(|socket| format!("+{}{}", socket.cookie, exempt(socket.client)));
        let mut forget = findings.forget.clone();
        forget.sort_unstable();
        let changes: Vec<_> = seed.chain(forget.iter().map(|cookie| format!("-{cookie}"))).collect();
        let Findings { seeded_clients, seeded_exempt, drift, .. } = findings;
        let adjust = audit.adjust(findings);
        format!("{}; {seeded_clients} and {seeded_exempt}; {drift}; {adjust}", changes.join(" "))
    }

    /// Audits in order, each with the kernel's list and the tracked sockets; then the changes that it asks for, seeded
    /// clients and exempt ones, drift, adjustment.
    type Audits = &'static [(&'static str, &'static str, &'static str)];

    #[test]
    fn differences_are_told_from_changes_between_two_reads() {
        let rows: &[(&str, bool, Audits)] = &[
            ("nothing", true, &[("", "", "; 0 and 0; 0; 0")]),
            (
                "sockets from before the programs count until they close",
                true,
                &[
                    ("1 2 3e", "", "+1 +2 +3e; 2 and 1; 0; 2"),
                    ("1 2 3e 9", "1s 2s 3es 9", "; 2 and 1; 0; 2"),
                    ("2 3e 9", "1s 2s 3es 9", "-1; 1 and 1; 0; 1"),
                    ("2 9", "2s 3es 9", "-3; 1 and 0; 0; 1"),
                    ("", "2s", "-2; 0 and 0; 0; 0"),
                ],
            ),
            (
                "the first audit of an agent that found programs at work seeds nothing",
                false,
                &[("1 2", "1s", "; 1 and 0; 0; 1")],
            ),
            (
                "one opens after the read of the map, or closes after that of the list",
                false,
                &[("1 2", "1 3", "; 0 and 0; 0; 0"), ("1 2", "1 2", "; 0 and 0; 0; 0")],
            ),
            (
                "one closes and another opens at every audit",
                false,
                &[
                    ("1", "2", "; 0 and 0; 0; 0"),
                    ("3", "4", "; 0 and 0; 0; 0"),
                    ("1", "2", "; 0 and 0; 0; 0"),
                ],
            ),
            (
                "the programs missed the opening of a client and of an exempt one",
                false,
                &[
                    ("1 2e", "", "; 0 and 0; 0; 0"),
                    ("1 2e", "", "+1 +2e; 1 and 1; -1; 1"),
                    ("1 2e", "1s 2es", "; 1 and 1; 0; 1"),
                    ("2e", "1s 2es", "-1; 0 and 1; 0; 0"),
                ],
            ),
            (
                "they missed the end of a client and of an exempt one, and count the client for ever",
                false,
                &[
                    ("3", "1 2e 3", "; 0 and 0; 0; 0"),
                    ("3", "1 2e 3", "-1 -2; 0 and 0; 1; -1"),
                    ("3", "3", "; 0 and 0; 0; -1"),
                    ("", "", "; 0 and 0; 0; -1"),
                ],
            ),
            (
                "they missed two ends and one opening",
                false,
                &[("2 4", "2 5 6", "; 0 and 0; 0; 0"), ("2 4", "2 5 6", "+4 -5 -6; 1 and 0; 1; -1")],
            ),
        ];
        for (what, first, audits) in rows {
            let mut audit = Audit::default();
            for (number, (list, map, expected)) in audits.iter().enumerate() {
                let present: Vec<_> =
                    sockets(list).map(|(cookie, client, _)| Present { cookie, client }).collect();
                let tracked = sockets(map).map(|(cookie, client, seeded)| {
                    (
                        cookie,
                        Tracked { since_s: 0, client: client.into(), seeded: seeded.into(), pad: [0; 2] },
                    )
                });
                let findings = audit.audit(&present, &tracked.collect(), *first && number == 0);
                assert_eq!(shown(&audit, &findings), *expected, "{what}, audit {number}");
            }
        }
    }
}
