//! The reasons for which this controller relays nothing, by their sources.

use std::collections::BTreeMap;

use super::Agent;

/// Why nothing is relayed, by family, IPv4 first.
pub(super) type Reasons = [Option<String>; 2];

/// A part of the agent that may have a reason.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Source {
    /// The operator, by `balancer bypass`: first in the sentence that the other controllers are told the beginning of.
    Bypass,
    /// This host's firewall.
    Firewall,
    /// This host's interfaces.
    Interfaces,
}

#[derive(Debug, Default)]
pub(super) struct Off {
    reasons: BTreeMap<Source, Reasons>,
    /// Changes of this host's firewall so far.
    pub(super) rules_changed: u64,
}

impl Off {
    pub(super) fn has(&self, source: Source) -> bool {
        self.reasons.get(&source).is_some_and(|reasons| reasons.iter().any(Option::is_some))
    }

    /// Notes the reasons of `source`, and returns those of all sources, for [`crate::cluster::Cluster::set_off`].
    pub(super) fn set(&mut self, source: Source, reasons: Reasons) -> Reasons {
        self.reasons.insert(source, reasons);
        let joined = |family: usize| {
            let all: Vec<&str> =
                self.reasons.values().filter_map(|reasons| reasons[family].as_deref()).collect();
            (!all.is_empty()).then(|| all.join("; "))
        };
        [joined(0), joined(1)]
    }
}

impl Agent {
    /// Notes the reasons of `source`, and tells the operator and the other controllers.
    pub(super) fn note_off(&mut self, source: Source, reasons: Reasons) {
        let joined = self.off.set(source, reasons);
        let effects = self.cluster.set_off(joined);
        self.carry_out_cluster(effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_reasons_of_a_source_hold() {
        let mut off = Off::default();
        let rows: [(Reasons, Reasons); 3] = [
            ([Some("a".into()), None], [Some("a".into()), None]),
            ([None, Some("b".into())], [None, Some("b".into())]),
            ([None, None], [None, None]),
        ];
        for (reasons, joined) in rows {
            let is_off = joined != [None, None];
            assert_eq!(off.set(Source::Firewall, reasons), joined);
            assert_eq!((off.has(Source::Firewall), off.has(Source::Bypass)), (is_off, false));
        }
    }
}
