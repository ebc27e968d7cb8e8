//! Events while connections are held, as data.

use std::time::Duration;

use anyhow::Result;
use tests::cluster::Cluster;
use tests::cluster::daemon::Daemon;

use crate::layout::to_bridge;

#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub what: What,
    /// It ends after this; zero for one that stays.
    pub lasts: Duration,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    /// The line between two controllers carries nothing, their lines to all others do.
    Cut(usize, usize),
    /// The lines between a controller and all other controllers carry nothing, those to clients do.
    Apart(usize),
    /// The line of a controller carries nothing at all.
    Dark(usize),
    /// A program of somebody else is put ahead of all others at this controller, and ends the chain.
    ProgramAhead(usize),
    /// The balancer's programs for arriving packets are detached at this controller.
    Detached(usize),
    /// The qdisc with the balancer's programs is deleted at this controller. An answer that is under way then leaves past
    /// them, and the client's stack resets it.
    QdiscDeleted(usize),
    /// This controller's addresses move to a bridge with its interface as a port.
    ToBridge(usize),
    /// This controller's interface is made anew.
    Anew(usize),
    /// Two controllers reach each other by their second interface from here on, and no longer by the first.
    Rerouted(usize, usize),
}

impl Event {
    pub fn begin(self, cluster: &mut Cluster) -> Result<()> {
        let Cluster { net, daemons, .. } = cluster;
        match self.what {
            What::Cut(one, other) => net.cut(&[(one, other)], 0),
            What::Apart(index) => {
                let others = (0..net.controllers.len()).filter(|&other| other != index);
                net.cut(&others.map(|other| (index, other)).collect::<Vec<_>>(), 0)
            }
            What::Dark(index) => net.controllers[index].silence(true),
            What::ProgramAhead(index) => net.end_chain(index),
            What::Detached(index) => daemons.get(index).map_or(Ok(()), Daemon::detach_ingress),
            What::QdiscDeleted(_) if daemons.is_empty() => Ok(()),
            What::QdiscDeleted(index) => {
                net.controllers[index].namespace.exec("tc qdisc del dev eth0 clsact").map(drop)
            }
            What::ToBridge(index) => to_bridge(&net.controllers[index]),
            What::Anew(index) => net.make_anew(index),
            What::Rerouted(one, other) => {
                for (from, to) in [(one, other), (other, one)] {
                    let to = &net.controllers[to];
                    let ([to4, by4], [to6, by6]) = (&to.ipv4[..], &to.ipv6[..]) else { continue };
                    net.controllers[from].namespace.ip(&format!(
                        "route add {to4}/32 via {by4} dev eth1\nroute add {to6}/128 via {by6} dev eth1\n"
                    ))?;
                }
                net.cut(&[(one, other)], 0)
            }
        }
    }

    /// Ends one that lasts.
    pub fn end(self, cluster: &mut Cluster) -> Result<()> {
        match self.what {
            What::Cut(..) | What::Apart(_) => cluster.net.mend(),
            What::Dark(index) => cluster.net.controllers[index].silence(false),
            What::ProgramAhead(_)
            | What::Detached(_)
            | What::QdiscDeleted(_)
            | What::ToBridge(_)
            | What::Anew(_)
            | What::Rerouted(..) => Ok(()),
        }
    }

    /// Whether clients can dial every controller while it lasts.
    pub const fn lets_clients_in(self) -> bool {
        !matches!(self.what, What::Dark(_))
    }
}
