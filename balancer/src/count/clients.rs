//! Compares the programs' count of each client address with the kernel's list of sockets.
//!
//! The programs count the connections that begin and end while they run and there is a limit for each client. They see no
//! end of an older connection, and an address may become a client's or cease to be one. An audit alone proves nothing, as
//! a connection may begin or end between the looks: a count is corrected where it did not move while the list was read,
//! and two audits in a row have found the same difference.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

pub type Counts = HashMap<IpAddr, u32>;

#[derive(Debug, Default)]
pub struct Clients {
    /// The differences that the last audit has found.
    found: HashMap<IpAddr, i64>,
}

impl Clients {
    /// The counts to write. `listed`: the kernel's; `before` and `after`: the programs' counts before and after the list was
    /// read.
    pub fn audit(&mut self, listed: &Counts, before: &Counts, after: &Counts) -> Vec<(IpAddr, u32)> {
        let mut found = HashMap::new();
        let mut wrong = Vec::new();
        let count = |counts: &Counts, address: &IpAddr| counts.get(address).copied().unwrap_or(0);
        let addresses: BTreeSet<&IpAddr> = listed.keys().chain(after.keys()).collect();
        for address in addresses {
            let (real, counted) = (count(listed, address), count(after, address));
            if real == counted || counted != count(before, address) {
                continue;
            }
            let difference = i64::from(real) - i64::from(counted);
            if self.found.get(address) == Some(&difference) {
                wrong.push((*address, real));
            } else {
                found.insert(*address, difference);
            }
        }
        self.found = found;
        wrong
    }

    /// Whether the next audit may correct a count.
    pub fn is_in_doubt(&self) -> bool {
        !self.found.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts such as `1:60 2:5`, of 192.0.2.1 and 192.0.2.2.
    fn counts(text: &str) -> Counts {
        let count = |word: &str| {
            let (host, count) = word.split_once(':').unwrap();
            (IpAddr::from([192, 0, 2, host.parse().unwrap()]), count.parse().unwrap())
        };
        text.split_whitespace().map(count).collect()
    }

    /// Listed, counted before and after; the corrections.
    type Audits = &'static [(&'static str, &'static str, &'static str, &'static str)];

    #[test]
    fn a_count_is_corrected_once_two_audits_agree() {
        let rows: &[(&str, Audits)] = &[
            ("right", &[("1:60 2:5", "1:60 2:5", "1:60 2:5", ""), ("1:60", "1:60", "1:60", "")]),
            (
                "older connections, of which the programs saw no end",
                &[
                    ("1:40", "1:100", "1:100", ""),
                    ("1:40", "1:100", "1:100", "1:40"),
                    ("1:40", "1:40", "1:40", ""),
                ],
            ),
            (
                "they end one after another",
                &[
                    ("1:2", "1:3", "1:3", ""),
                    ("1:1", "1:3", "1:3", ""),
                    ("", "1:3", "1:3", ""),
                    ("", "1:3", "1:3", "1:0"),
                ],
            ),
            (
                "connections from before there was a limit for each",
                &[("1:60", "", "", ""), ("1:60", "", "", "1:60")],
            ),
            (
                "one begins or ends while the list is read",
                &[("1:5", "1:5", "1:6", ""), ("1:6", "1:7", "1:6", ""), ("1:5", "1:5", "1:4", "")],
            ),
            (
                "it begins before the list is read and its count moves after that",
                &[("1:5", "1:4", "1:4", ""), ("1:5", "1:5", "1:5", ""), ("1:6", "1:5", "1:5", "")],
            ),
            (
                "an address is exempt now, and the list leaves it out",
                &[("2:1", "1:3 2:1", "1:3 2:1", ""), ("2:1", "1:3 2:1", "1:3 2:1", "1:0")],
            ),
            (
                "the same difference, but for one audit between",
                &[("1:1", "", "", ""), ("1:1", "1:1", "1:1", ""), ("1:1", "", "", "")],
            ),
        ];
        for (what, audits) in rows {
            let mut clients = Clients::default();
            for (number, (listed, before, after, expected)) in audits.iter().enumerate() {
                let wrong: Counts =
                    clients.audit(&counts(listed), &counts(before), &counts(after)).into_iter().collect();
                assert_eq!(wrong, counts(expected), "{what}, audit {number}");
            }
        }
    }
}
