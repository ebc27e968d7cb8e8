//! The key of the tags in relayed SYNs while the cluster's key changes.
//!
//! The programs seal and open tags under one key. An entry relays only to owners that have announced the same one, and serves
//! its clients itself meanwhile. A controller takes the new key for its tags once all that it hears have it, so that this
//! is a matter of a second. First it announces that it has none: a SYN that is on its way then still finds the old one.

use std::time::{Duration, Instant};

use crate::juju::key::ClusterKey;

/// From the word that this controller takes no relays until it changes the key of its tags.
const PAUSE: Duration = Duration::from_millis(500);
/// The announced name of a key while it changes.
const CHANGING: &str = "-";

/// The key of the tags, and its name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tag {
    pub key: [u64; 2],
    pub name: String,
}

impl Tag {
    pub fn of(key: &ClusterKey) -> Self {
        Self { key: key.syn_tag_key(), name: key.tag_name() }
    }

    /// Whether an owner that has announced `theirs` opens tags under this key. Agents of earlier versions announce none.
    pub fn is_taken_by(&self, theirs: &str) -> bool {
        theirs.is_empty() || self.name == theirs
    }
}

#[derive(Debug)]
pub struct Rotation {
    current: Tag,
    next: Option<Tag>,
    announced_at: Option<Instant>,
}

impl Rotation {
    pub fn new(current: Tag) -> Self {
        Self { current, next: None, announced_at: None }
    }

    pub fn current(&self) -> &Tag {
        &self.current
    }

    /// The name that this controller tells the others.
    pub fn announced(&self) -> &str {
        if self.announced_at.is_some() { CHANGING } else { &self.current.name }
    }

    pub fn replace(&mut self, next: Tag) {
        self.announced_at = None;
        self.next = Some(next).filter(|next| *next != self.current);
    }

    /// `agreed`: all controllers that are heard have the new key. Returns whether the key of the tags has changed.
    pub fn step(&mut self, now: Instant, agreed: bool) -> bool {
        if self.next.is_none() || (!agreed && self.announced_at.is_none()) {
            return false;
        }
        let since = *self.announced_at.get_or_insert(now);
        if now.saturating_duration_since(since) < PAUSE {
            return false;
        }
        self.announced_at = None;
        self.next.take().is_some_and(|next| std::mem::replace(&mut self.current, next) != self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> Tag {
        Tag { key: [1, name.len() as u64], name: name.into() }
    }

    #[test]
    fn the_key_of_the_tags_changes_once_all_have_the_new_one() {
        let start = Instant::now();
        let mut rotation = Rotation::new(tag("a"));
        rotation.replace(tag("bb"));
        // Milliseconds, whether all have it, the announced name and the key in use after that.
        let rows = [
            (0, false, "a", "a"),
            (60_000, false, "a", "a"),
            (60_100, true, CHANGING, "a"),
            (60_200, false, CHANGING, "a"),
            (60_599, true, CHANGING, "a"),
            (60_600, true, "bb", "bb"),
            (70_000, true, "bb", "bb"),
        ];
        for (ms, agreed, announced, current) in rows {
            let before = rotation.current().clone();
            let changed = rotation.step(start + Duration::from_millis(ms), agreed);
            assert_eq!(
                (rotation.announced(), rotation.current().name.as_str()),
                (announced, current),
                "{ms} ms"
            );
            assert_eq!(changed, before != *rotation.current(), "{ms} ms");
        }
    }

    #[test]
    fn a_key_that_is_put_back_changes_nothing() {
        let start = Instant::now();
        let mut rotation = Rotation::new(tag("a"));
        rotation.replace(tag("bb"));
        rotation.step(start, true);
        rotation.replace(tag("a"));
        assert_eq!(rotation.announced(), "a");
        assert!(!rotation.step(start + Duration::from_secs(9), true));
        assert_eq!(rotation.current(), &tag("a"));
    }

    #[test]
    fn only_the_same_key_is_taken() {
        for (theirs, taken) in [("", true), ("a", true), ("bb", false), (CHANGING, false)] {
            assert_eq!(tag("a").is_taken_by(theirs), taken, "{theirs:?}");
        }
    }
}
