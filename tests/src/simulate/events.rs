//! The events of a course, the earliest first.

use std::cmp::Reverse;
use std::rc::Rc;

use balancer::cluster::peers::Report;

use super::scenario::Fault;

#[derive(Debug)]
pub enum Event {
    Dials {
        client: u32,
        tried: u8,
    },
    /// A relayed SYN arrives at its owner.
    Arrives {
        client: u32,
        entry: u8,
        owner: u8,
    },
    /// Its owner did not answer, and the client has repeated its SYN.
    Repeats {
        client: u32,
        entry: u8,
    },
    Ends {
        client: u32,
        dials: u32,
    },
    Glance {
        controller: usize,
    },
    Reported {
        from: usize,
        to: usize,
        report: Box<(u64, Rc<Report>)>,
    },
    Begins(Fault),
    Over(Fault),
    Ready(usize),
    Sample,
}

pub struct Queued {
    pub at: Reverse<(u64, u64)>,
    pub event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}
