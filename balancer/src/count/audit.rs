//! Compares the programs' count with the kernel's list of sockets, and corrects it.
//!
//! The programs track each socket that they count by its cookie. Sockets that were open before the programs were
//! attached are tracked here as *seeded*, and [`Settings::adjust`] counts them. The kernel reports state changes only
//! for a socket on which `sock_ops` asked for them, so they do not see a seeded one close: while there are any, the agent
//! has the kernel tell of each socket that ends, and audits more often, as one may also close its half alone.
//!
//! A socket belongs to a client or not as the configuration says now, not as it said when the socket was opened: where
//! both differ, the audit gives its note the other class. The programs take the end of the socket off the count of that
//! class, so [`Audit`] moves one between the two counts.
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
    /// Tracked sockets whose peer has become a client, or is one no longer: the notes to write.
    pub reclass: Vec<(u64, Tracked)>,
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
    /// Cookies that the last audit saw in the list alone, in the map alone, and tracked as no client's although its peer
    /// is one: the last may be a probe, which lasts no longer than an audit.
    missing: HashSet<u64>,
    surplus: HashSet<u64>,
    differing: HashSet<u64>,
    /// Minus one for each client that the programs count for ever: they missed its end, or will take it off the other
    /// count. Plus one for each whose end they will take off too much.
    corrected: i64,
    /// The same for the sockets of others.
    corrected_exempt: i64,
}

impl Audit {
    /// Goes on after an earlier agent, which left `adjust` in the settings, the notes `tracked`, and `exempt` as the
    /// programs' count of sockets that are no client's. Returns its findings.
    pub fn resume(adjust: i64, tracked: &HashMap<u64, Tracked>, exempt: u32) -> (Self, Findings) {
        let mut findings = Findings::default();
        let mut others = 0;
        for Tracked { client, seeded, .. } in tracked.values() {
            if *seeded != 0 {
                findings.count_seeded(*client != 0);
            } else {
                others += i64::from(*client == 0);
            }
        }
        let corrected = adjust - i64::from(findings.seeded_clients);
        let corrected_exempt = others - i64::from(exempt.cast_signed());
        (Self { corrected, corrected_exempt, ..Self::default() }, findings)
    }

    /// Compares the kernel's list with the tracked sockets. `first`: nothing was counted before, so every socket that
    /// is not tracked is seeded at once.
    pub fn audit(&mut self, present: &[Present], tracked: &HashMap<u64, Tracked>, first: bool) -> Findings {
        let mut findings = Findings::default();
        let (mut missing, mut surplus, mut differing) = (HashSet::new(), HashSet::new(), HashSet::new());
        let listed: HashMap<u64, bool> =
            present.iter().map(|socket| (socket.cookie, socket.client)).collect();
        for socket in present.iter().filter(|socket| !tracked.contains_key(&socket.cookie)) {
            if missing.insert(socket.cookie) && (first || self.missing.contains(&socket.cookie)) {
                findings.seed.push(*socket);
                findings.count_seeded(socket.client);
                findings.drift -= i64::from(!first && socket.client);
            }
        }
        for (&cookie, note) in tracked {
            let (client, seeded) = (note.client != 0, note.seeded != 0);
            let Some(&is_client) = listed.get(&cookie) else {
                surplus.insert(cookie);
                if seeded || self.surplus.contains(&cookie) {
                    findings.forget.push(cookie);
                    let missed_end = i64::from(client && !seeded);
                    findings.drift += missed_end;
                    self.corrected -= missed_end;
                }
                continue;
            };
            let mut note = *note;
            if client != is_client
                && (client || !differing.insert(cookie) || self.differing.contains(&cookie))
            {
                note.client = is_client.into();
                findings.reclass.push((cookie, note));
                self.move_one(note, 1);
            }
            if seeded {
                findings.count_seeded(note.client != 0);
            }
        }
        (self.missing, self.surplus, self.differing) = (missing, surplus, differing);
        findings
    }

    /// Moves `count` sockets with the note `note` from the count of the other class to that of its class. The settings
    /// count seeded ones by themselves.
    fn move_one(&mut self, note: Tracked, count: i64) {
        if note.seeded == 0 {
            let count = if note.client == 0 { -count } else { count };
            self.corrected += count;
            self.corrected_exempt -= count;
        }
    }

    /// The socket of a note in [`Findings::reclass`] has ended before the note was written.
    pub fn not_reclassed(&mut self, note: &Tracked) {
        self.move_one(*note, -1);
    }

    /// Whether the next audit may settle a difference.
    pub fn is_in_doubt(&self) -> bool {
        !self.differing.is_empty()
    }

    /// [`Settings::adjust`](balancer_common::records::Settings::adjust) after an audit.
    pub fn adjust(&self, findings: &Findings) -> i64 {
        i64::from(findings.seeded_clients) + self.corrected
    }

    /// Likewise for the programs' count of the others' sockets.
    pub fn adjust_exempt(&self, findings: &Findings) -> i64 {
        i64::from(findings.seeded_exempt) + self.corrected_exempt
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
        let mut reclass = findings.reclass.clone();
        reclass.sort_unstable_by_key(|(cookie, _)| *cookie);
        let reclass = reclass.iter().map(|(cookie, note)| format!("~{cookie}{}", exempt(note.client != 0)));
        let changes: Vec<_> =
            seed.chain(forget.iter().map(|cookie| format!("-{cookie}"))).chain(reclass).collect();
        let Findings { seeded_clients, seeded_exempt, drift, .. } = findings;
        let (adjust, others) = (audit.adjust(findings), audit.adjust_exempt(findings));
        let others = if others == i64::from(*seeded_exempt) { String::new() } else { format!(" {others}") };
        format!("{}; {seeded_clients} and {seeded_exempt}; {drift}; {adjust}{others}", changes.join(" "))
    }

    fn noted(map: &str) -> HashMap<u64, Tracked> {
        let note = |(cookie, client, seeded): (u64, bool, bool)| {
            (cookie, Tracked { since_s: 0, client: client.into(), seeded: seeded.into(), pad: [0; 2] })
        };
        sockets(map).map(note).collect()
    }

    /// Audits in order, each with the kernel's list and the tracked sockets; then the changes that it asks for, seeded
    /// clients and exempt ones, drift, adjustment, and that of the exempt ones where it is more than those seeded.
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
            (
                "a client becomes exempt, and its socket ends: the programs take it off the exempt ones",
                false,
                &[
                    ("1e 2", "1 2", "~1e; 0 and 0; 0; -1 1"),
                    ("1e 2", "1e 2", "; 0 and 0; 0; -1 1"),
                    ("2", "2", "; 0 and 0; 0; -1 1"),
                ],
            ),
            (
                "seeded ones move as well, and the settings follow",
                false,
                &[
                    ("1e 2", "1s 2s", "~1e; 1 and 1; 0; 1"),
                    ("1e 2", "1es 2s", "; 1 and 1; 0; 1"),
                    ("1 2", "1es 2s", "; 1 and 1; 0; 1"),
                    ("1 2", "1es 2s", "~1; 2 and 0; 0; 2"),
                ],
            ),
            (
                "an exempt peer becomes a client, once two audits have seen it; a probe's socket has gone by then",
                false,
                &[
                    ("1 7", "1e 7e", "; 0 and 0; 0; 0"),
                    ("1", "1e", "~1; 0 and 0; 0; 1 -1"),
                    ("1", "1", "; 0 and 0; 0; 1 -1"),
                    ("1e", "1", "~1e; 0 and 0; 0; 0"),
                ],
            ),
        ];
        for (what, first, audits) in rows {
            let mut audit = Audit::default();
            for (number, (list, map, expected)) in audits.iter().enumerate() {
                let present: Vec<_> =
                    sockets(list).map(|(cookie, client, _)| Present { cookie, client }).collect();
                let findings = audit.audit(&present, &noted(map), *first && number == 0);
                assert_eq!(shown(&audit, &findings), *expected, "{what}, audit {number}");
            }
        }
    }
    #[test]
    fn an_agent_goes_on_with_the_corrections_of_an_earlier_one() {
        // Adjustment in the settings, notes, the programs' count of others; then the adjustments.
        let rows = [
            (0, "", 0, (0, 0)),
            (2, "1s 2s 3e", 1, (2, 0)),
            (1, "1s 2s 3e", 1, (1, 0)),
            (-3, "1 2 4es", 0, (-3, 1)),
            (-1, "1 2e", 0, (-1, 1)),
            (1, "1", u32::MAX, (1, 1)),
        ];
        for (adjust, map, exempt, expected) in rows {
            let (audit, findings) = Audit::resume(adjust, &noted(map), exempt);
            let found = (audit.adjust(&findings), audit.adjust_exempt(&findings));
            assert_eq!(found, expected, "{adjust} {map:?} {exempt}");
        }
    }

    #[test]
    fn a_socket_that_ended_before_its_note_was_written_is_not_moved() {
        let mut audit = Audit::default();
        let present = [Present { cookie: 1, client: false }];
        let findings = audit.audit(&present, &noted("1"), false);
        assert_eq!(audit.adjust(&findings), -1);
        audit.not_reclassed(&findings.reclass[0].1);
        assert_eq!((audit.adjust(&findings), audit.adjust_exempt(&findings)), (0, 0));
    }
}
