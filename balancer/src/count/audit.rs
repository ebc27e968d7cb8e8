//! The count made whole: connections from before the programs were attached, and the audit of those
//! that the programs count against the kernel's own list.
//!
//! A socket is known by its cookie. The programs note every one that they count; those that were
//! there before are noted here as *seeded*, and [`Settings::adjust`] counts them. The programs do
//! not see a seeded socket close, so the list is read again every second while there are any.
//!
//! [`Settings::adjust`]: balancer_common::records::Settings::adjust

use std::collections::{HashMap, HashSet};

use balancer_common::records::Tracked;

/// A socket in the kernel's list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Present {
    /// Its cookie.
    pub cookie: u64,
    /// Whether its peer is a client, not a controller or exempt.
    pub client: bool,
}

/// What an audit found, and asks to be done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Findings {
    /// Sockets to note as seeded.
    pub seed: Vec<Present>,
    /// Notes to remove.
    pub forget: Vec<u64>,
    /// Seeded clients' sockets after that.
    pub seeded_clients: u32,
    /// Seeded controllers' and exempt sockets after that.
    pub seeded_exempt: u32,
    /// Sockets that the programs should have counted and did not, or counted and should not: more
    /// (positive) or fewer (negative) clients than there are.
    pub drift: i64,
}

/// Compares the kernel's list with the notes, and finds what has differed twice.
#[derive(Debug, Default)]
pub struct Audit {
    /// Differences that the last audit saw: one may be a socket that opens or closes just then.
    missing: HashSet<u64>,
    surplus: HashSet<u64>,
    /// Correction for drift found so far; part of the adjustment.
    corrected: i64,
}

impl Audit {
    /// One audit. `first`: nothing was counted before, so all that is present and not noted is seeded.
    pub fn audit(&mut self, present: &[Present], noted: &HashMap<u64, Tracked>, first: bool) -> Findings {
        let mut findings = Findings::default();
        let by_cookie: HashMap<u64, &Present> =
            present.iter().map(|socket| (socket.cookie, socket)).collect();
        let missing: HashSet<u64> =
            by_cookie.keys().filter(|cookie| !noted.contains_key(cookie)).copied().collect();
        let surplus: HashSet<u64> =
            noted.keys().filter(|cookie| !by_cookie.contains_key(cookie)).copied().collect();
        for cookie in &missing {
            if (first || self.missing.contains(cookie))
                && let Some(socket) = by_cookie.get(cookie)
            {
                findings.seed.push(**socket);
                findings.drift -= i64::from(!first && socket.client);
            }
        }
        for cookie in &surplus {
            let Some(tracked) = noted.get(cookie) else { continue };
            if tracked.seeded != 0 {
                findings.forget.push(*cookie);
            } else if self.surplus.contains(cookie) {
                findings.forget.push(*cookie);
                let client = i64::from(tracked.client != 0);
                findings.drift += client;
                // The programs still count it, and will not be told of its end.
                self.corrected -= client;
            }
        }
        for (cookie, tracked) in noted {
            if tracked.seeded != 0 && !findings.forget.contains(cookie) {
                findings.seeded_clients += u32::from(tracked.client != 0);
                findings.seeded_exempt += u32::from(tracked.client == 0);
            }
        }
        for socket in &findings.seed {
            findings.seeded_clients += u32::from(socket.client);
            findings.seeded_exempt += u32::from(!socket.client);
        }
        (self.missing, self.surplus) = (missing, surplus);
        findings
    }

    /// [`Settings::adjust`] after an audit.
    ///
    /// [`Settings::adjust`]: balancer_common::records::Settings::adjust
    pub fn adjust(&self, findings: &Findings) -> i64 {
        i64::from(findings.seeded_clients) + self.corrected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(cookie: u64) -> Present {
        Present { cookie, client: true }
    }

    fn note(seeded: u8) -> Tracked {
        Tracked { since_s: 0, client: 1, seeded, pad: [0; 2] }
    }

    #[test]
    fn what_was_there_before_is_seeded_until_it_closes() {
        let mut census = Audit::default();
        let exempt = Present { cookie: 3, client: false };
        let found = census.audit(&[socket(1), socket(2), exempt], &HashMap::new(), true);
        assert_eq!((found.seed.len(), found.seeded_clients, found.seeded_exempt, found.drift), (3, 2, 1, 0));
        assert_eq!(census.adjust(&found), 2);
        let noted = HashMap::from([(1, note(1)), (2, note(1)), (9, note(0))]);
        let found = census.audit(&[socket(2), socket(9)], &noted, false);
        assert_eq!((found.forget.as_slice(), found.seeded_clients, found.drift), ([1].as_slice(), 1, 0));
    }

    #[test]
    fn a_difference_counts_when_it_is_seen_twice() {
        let mut census = Audit::default();
        let noted = HashMap::from([(1, note(0))]);
        let found = census.audit(&[socket(2)], &noted, false);
        assert_eq!((found.drift, found.seed.len(), found.forget.len()), (0, 0, 0));
        // 1 has closed and been untracked meanwhile, 2 has been tracked: nothing was wrong.
        let found = census.audit(&[socket(2)], &HashMap::from([(2, note(0))]), false);
        assert_eq!((found.drift, census.adjust(&found)), (0, 0));
        // 4 stays unseen, 5 stays noted though it is gone.
        let noted = HashMap::from([(2, note(0)), (5, note(0)), (6, note(0))]);
        census.audit(&[socket(2), socket(4)], &noted, false);
        let found = census.audit(&[socket(2), socket(4)], &noted, false);
        assert_eq!((found.drift, found.seed.as_slice(), found.forget.len()), (1, [socket(4)].as_slice(), 2));
        assert_eq!(census.adjust(&found), 1 - 2, "one more than the programs count, two fewer");
    }
}
