//! The bounds of the balancer's own tables: everything above one is served where it dials, and the operator is told.

use std::collections::BTreeMap;

use log::{info, warn};

/// A table with a bound.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Table {
    Clients,
    Controllers,
    Interfaces,
    Networks,
    Sockets,
}

/// The bounds that are met now, as sentences.
#[derive(Debug, Default)]
pub(super) struct Bounds(BTreeMap<Table, String>);

/// A line for the log.
#[derive(Clone, Debug, Eq, PartialEq)]
enum News {
    Met(String),
    Left(Table),
}

impl Bounds {
    /// Notes that `count` of something go into `table`, which has room for `room`; `sentence` tells the consequence for
    /// those above it.
    pub(super) fn note(
        &mut self,
        table: Table,
        count: usize,
        room: usize,
        sentence: impl FnOnce(usize) -> String,
    ) {
        let met = count.checked_sub(room).filter(|above| *above > 0).map(sentence);
        match self.set(table, met) {
            Some(News::Met(sentence)) => warn!("{sentence}"),
            Some(News::Left(table)) => info!("the bound on {table:?} is no longer met"),
            None => {}
        }
    }

    fn set(&mut self, table: Table, met: Option<String>) -> Option<News> {
        let is_new = self.0.contains_key(&table) != met.is_some();
        let news = met.clone().map_or(News::Left(table), News::Met);
        match met {
            Some(sentence) => drop(self.0.insert(table, sentence)),
            None => drop(self.0.remove(&table)),
        }
        is_new.then_some(news)
    }

    pub(super) fn sentences(&self) -> Vec<String> {
        self.0.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_told_when_it_is_met_and_when_it_is_left() {
        let mut bounds = Bounds::default();
        let met = |text: &str| Some(text.to_owned());
        let rows = [
            (Table::Interfaces, None, None, &[][..]),
            (Table::Interfaces, met("1 more"), Some(News::Met("1 more".into())), &["1 more"]),
            // The number moves all the time.
            (Table::Interfaces, met("2 more"), None, &["2 more"]),
            (Table::Clients, met("full"), Some(News::Met("full".into())), &["full", "2 more"]),
            (Table::Interfaces, None, Some(News::Left(Table::Interfaces)), &["full"]),
            (Table::Interfaces, None, None, &["full"]),
        ];
        for (table, sentence, news, left) in rows {
            assert_eq!(bounds.set(table, sentence.clone()), news, "{sentence:?}");
            assert_eq!(bounds.sentences(), left, "{sentence:?}");
        }
        for (count, room, told) in [(3, 4, false), (4, 4, false), (5, 4, true)] {
            let mut bounds = Bounds::default();
            bounds.note(Table::Clients, count, room, |above| above.to_string());
            assert_eq!(!bounds.sentences().is_empty(), told, "{count} of {room}");
        }
    }
}
