//! Filters of the clsact queueing discipline: the hook of kernels before 6.6.
//!
//! Filters run in the order of their priorities; of those with one priority, the newest runs first (`cls_bpf_change`).

use std::{collections::HashSet, io};

use anyhow::Result;
use aya::programs::{
    TcAttachType,
    tc::{SchedClassifierLink, TcHandle},
};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption},
};

use super::hooks::Place;
use crate::host::netlink::Channel;

/// Handle of the agent's filters, by which every agent knows them.
pub const HANDLE: u32 = 17_070;
/// Priority and handle of the filters of agents before 0.2.
const OLDER: (u16, u32) = (17_070, 1);

/// A filter of an interface, in the order in which they run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filter {
    pub priority: u16,
    /// 0: no filter, but the head of a priority.
    pub handle: u32,
    /// The program's name, as it was attached; empty if the filter is of another kind.
    pub program: String,
    /// The program's number.
    pub id: u32,
}

impl Filter {
    /// Whether an agent has attached it, as `program`.
    pub fn is_ours(&self, program: &str) -> bool {
        let ours = self.handle == HANDLE || (self.priority, self.handle) == OLDER;
        ours && self.program == program
    }
}

/// The filters of an interface, in the order in which they run.
pub fn list(channel: &mut Channel, index: u32, direction: TcAttachType) -> io::Result<Vec<Filter>> {
    let mut question = TcMessage::with_index(index.cast_signed());
    let parent = if direction == TcAttachType::Egress {
        rtnetlink::packet_route::tc::TcHandle::MIN_EGRESS
    } else {
        rtnetlink::packet_route::tc::TcHandle::MIN_INGRESS
    };
    question.header.parent = rtnetlink::packet_route::tc::TcHandle { major: 0xffff, minor: parent };
    let answers = channel.list(RouteNetlinkMessage::GetTrafficFilter(question))?;
    Ok(answers.iter().filter_map(read).collect())
}

/// The interfaces that have the clsact queueing discipline.
pub fn interfaces(channel: &mut Channel) -> io::Result<HashSet<u32>> {
    let all = channel.list(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
    let is_clsact = |message: &TcMessage| {
        message.attributes.iter().any(|one| matches!(one, TcAttribute::Kind(kind) if kind == "clsact"))
    };
    let index = |answer: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
        is_clsact(message).then_some(message.header.index.cast_unsigned())
    };
    Ok(all.iter().filter_map(index).collect())
}

fn read(answer: &RouteNetlinkMessage) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
    let mut filter = Filter {
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        ..Filter::default()
    };
    let is_bpf = message
        .attributes
        .iter()
        .any(|one| matches!(one, TcAttribute::Kind(kind) if kind == TcFilterBpf::KIND));
    for attribute in message.attributes.iter().filter(|_| is_bpf) {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            if let TcOption::Bpf(TcFilterBpfOption::ProgName(name)) = option {
                filter.program.clone_from(name);
            } else if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option {
                filter.id = *id;
            }
        }
    }
    Some(filter)
}

/// The place of an agent's filter with the program `id` among `filters`.
pub fn place(filters: &[Filter], program: &str, id: u32) -> Place {
    let mut filters = filters.iter().filter(|filter| filter.handle != 0);
    match filters.position(|filter| filter.is_ours(program) && filter.id == id) {
        Some(0) => Place::First,
        Some(_) => Place::Behind,
        None => Place::Missing,
    }
}

/// The priorities to try for a filter that shall run before others, best first.
pub fn priorities(filters: &[Filter]) -> Vec<u16> {
    let taken = |priority: &u16| filters.iter().any(|filter| filter.priority == *priority);
    let free = (1..u16::MAX).find(|priority| !taken(priority));
    [Some(1), free].into_iter().flatten().collect()
}

/// Removes the filters that agents have attached as `program`. Returns whether there was any.
pub fn remove(name: &str, filters: &[Filter], program: &str, direction: TcAttachType) -> Result<bool> {
    let mut removed = false;
    for filter in filters.iter().filter(|filter| filter.is_ours(program)) {
        let handle = TcHandle::from(filter.handle);
        let link = SchedClassifierLink::attached(name, direction, filter.priority, handle, None)?;
        removed |= aya::programs::Link::detach(link).is_ok();
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, handle: u32, program: &str, id: u32) -> Filter {
        Filter { priority, handle, program: program.into(), id }
    }

    #[test]
    fn a_filter_is_first_missing_or_behind_another() {
        let head = |priority| filter(priority, 0, "", 0);
        let own = |priority| filter(priority, HANDLE, "ingress", 7);
        let other = |priority| filter(priority, 1, "cil_from_netdev", 9);
        let rows = [
            (vec![], Place::Missing, vec![1, 1]),
            (vec![head(1), own(1)], Place::First, vec![1, 2]),
            (vec![head(1), own(1), head(2), other(2)], Place::First, vec![1, 3]),
            (vec![head(1), own(1), other(1)], Place::First, vec![1, 2]),
            (vec![head(1), other(1), own(1)], Place::Behind, vec![1, 2]),
            (vec![head(1), other(1), head(2), own(2)], Place::Behind, vec![1, 3]),
            (vec![head(1), other(1)], Place::Missing, vec![1, 2]),
            (vec![head(17_070), filter(17_070, 1, "ingress", 6)], Place::Missing, vec![1, 1]),
            (vec![head(1), filter(1, HANDLE, "ingress", 6)], Place::Missing, vec![1, 2]),
        ];
        for (filters, expected, to_try) in rows {
            assert_eq!(place(&filters, "ingress", 7), expected, "{filters:?}");
            assert_eq!(priorities(&filters), to_try, "{filters:?}");
        }
    }

    #[test]
    fn an_agent_knows_its_filters_and_those_of_older_agents() {
        let rows = [
            (filter(1, HANDLE, "ingress", 1), true),
            (filter(2, HANDLE, "ingress", 1), true),
            (filter(17_070, 1, "ingress", 1), true),
            (filter(1, 1, "ingress", 1), false),
            (filter(17_070, 1, "egress", 1), false),
            (filter(1, HANDLE, "other", 1), false),
            (filter(17_070, 0, "", 0), false),
        ];
        for (filter, ours) in rows {
            assert_eq!(filter.is_ours("ingress"), ours, "{filter:?}");
        }
    }
}
