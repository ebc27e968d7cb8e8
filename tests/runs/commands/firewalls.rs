//! The commands of the section on firewalls. Hosts that let nobody in are tried three times: without these commands, with the
//! API port alone, and with the commands as the document has them.

use std::net::SocketAddr;
use std::panic::resume_unwind;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::juju::fleet::{Dial, How, Kind};
use tests::machines::controllers::{UNIT, await_well, status};
use tests::network::knock::let_in;
use tests::support::document::{blocks, typed};
use tests::support::eventually::{SOON, wait_for};

use crate::Scene;
use crate::table::Typed;

/// The client that the document keeps out.
const BLOCKED: &str = "203.0.113.9";
const TRIES: usize = 10;
const CLIENTS: usize = 60;

/// A tool of the document, and a host that it keeps everybody from.
struct Tool {
    /// The first word of its comment in the document's block.
    name: &'static str,
    /// Lets in nothing but answers, `lo` and ICMP.
    closed: &'static str,
    /// Filters, and lets in everybody.
    lax: &'static str,
    /// Ends either.
    off: &'static str,
}

const NFTABLES: Tool = Tool {
    name: "nftables",
    closed: "nft 'table inet filter { chain input { type filter hook input priority filter; policy drop; \
             ct state established,related accept; iif lo accept; meta l4proto { icmp, ipv6-icmp } accept; }; }'",
    lax: "nft 'table inet filter { chain input { type filter hook input priority filter; }; }'",
    off: "nft 'delete table inet filter'",
};
const IPTABLES: Tool = Tool {
    name: "iptables",
    closed: "iptables -P INPUT DROP && iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT && \
             iptables -A INPUT -i lo -j ACCEPT && iptables -A INPUT -p icmp -j ACCEPT",
    lax: "iptables -P INPUT ACCEPT",
    off: "iptables -P INPUT ACCEPT && iptables -F INPUT",
};
const UFW: Tool = Tool {
    name: "ufw",
    closed: "ufw default deny incoming && ufw --force enable",
    lax: "ufw default allow incoming && ufw --force enable",
    off: "ufw --force disable && ufw --force reset",
};
const FIREWALLD: Tool = Tool {
    name: "firewalld",
    closed: "systemctl unmask firewalld && systemctl start firewalld && firewall-cmd --set-default-zone=public",
    lax: "systemctl unmask firewalld && systemctl start firewalld && firewall-cmd --set-default-zone=trusted",
    off: "systemctl stop firewalld && rm -r /etc/firewalld/zones && mkdir /etc/firewalld/zones",
};

/// What hosts let in before the document's commands.
#[derive(Clone, Copy, Debug)]
enum Policy {
    Closed,
    Lax,
}

/// The commands of each tool in the document's block.
fn document() -> Result<Vec<(String, Vec<String>)>> {
    let blocks = blocks("Firewalls")?;
    let [(_, block)] = &blocks[..] else { anyhow::bail!("one block of commands: {blocks:?}") };
    let parts = block.trim().split("\n\n").map(|part| {
        let name = part.strip_prefix("# ").context("a comment first")?;
        let name = name.split(|one: char| !one.is_ascii_alphanumeric()).next().unwrap_or_default();
        Ok((name.to_owned(), typed(part)))
    });
    parts.collect()
}

/// All commands of the block.
pub fn commands() -> Result<Vec<String>> {
    Ok(document()?.into_iter().flat_map(|(_, commands)| commands).collect())
}

/// Without the relay ports, as an operator writes it who has not read on.
fn api_port_alone(command: &str) -> String {
    [", 17080-17095", ",17080:17095", " 17080-17095"]
        .iter()
        .fold(command.to_owned(), |command, ports| command.replace(ports, ""))
}

impl Scene {
    /// Connections from `client` that each controller lets in.
    fn gets_in(&self, client: SocketAddr) -> Result<Vec<usize>> {
        let clients = &self.cluster.net.clients[0].namespace;
        // At the same time: where nobody gets in, each takes seconds.
        std::thread::scope(|scope| {
            let servers = self.cluster.addresses().into_iter();
            let tries = servers.map(|server| scope.spawn(move || let_in(clients, client, server, TRIES)));
            let tries: Vec<_> = tries.collect();
            tries.into_iter().map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    fn statuses(&self) -> Result<Vec<Value>> {
        self.hosts.iter().map(status).collect()
    }

    /// Waits until each agent gives so many reasons with these `words` for which it relays nothing.
    fn await_reasons(&self, what: &str, words: &str, count: usize) -> Result<()> {
        let reasons =
            || Ok(self.statuses()?.into_iter().map(|status| status["not_relayed"].to_string()).collect());
        let are_given = |all: &Vec<String>| all.iter().all(|why| why.matches(words).count() == count);
        wait_for(UNIT, what, reasons, are_given).map(drop)
    }

    /// Relays that each controller has opened for clients.
    fn opened(&self) -> Result<Vec<u64>> {
        self.statuses()?.iter().map(|one| one["counters"]["opened"].as_u64().context("a counter")).collect()
    }

    /// Ensures that [`CLIENTS`] are served that all dial each controller, and returns how many relays each one has opened.
    fn serves(&mut self, what: &str) -> Result<Vec<u64>> {
        let before = self.opened()?;
        for index in 0..self.hosts.len() {
            let id = format!("{what} {index}");
            let dial = Dial {
                concurrency: 30,
                rate: 90.0,
                ..Dial::new(&id, Kind::Single, CLIENTS, &[self.cluster.address(index)])
            };
            self.cluster.fleet.dial_unharmed(&dial)?;
            self.cluster.fleet.close(CLIENTS, How::Fin)?;
            self.cluster.await_counts(SOON, "all are closed", |counts| counts.iter().sum::<usize>() == 0)?;
        }
        let opened = self.opened()?.iter().zip(before).map(|(after, before)| after - before).collect();
        println!("{what}: relays {opened:?}");
        Ok(opened)
    }
}

/// The controllers' tools, in their order, and what hosts let in before the document's commands.
struct Round {
    tools: [&'static Tool; 3],
    policy: Policy,
}

impl Round {
    fn set(&self, scene: &Scene) -> Result<()> {
        self.tools.iter().zip(&scene.hosts).try_for_each(|(tool, host)| {
            let script = match self.policy {
                Policy::Closed => tool.closed,
                Policy::Lax => tool.lax,
            };
            host.run(script).map(drop)
        })
    }

    fn end(&self, scene: &Scene) -> Result<()> {
        self.tools.iter().zip(&scene.hosts).try_for_each(|(tool, host)| host.run(tool.off).map(drop))
    }

    /// Types the commands of each controller's tool, as `change` makes them, and has the agents look. Where all are let in,
    /// only those that keep somebody out.
    fn type_all(&self, scene: &mut Scene, change: Option<fn(&str) -> String>) -> Result<()> {
        let document = document()?;
        for (index, tool) in self.tools.into_iter().enumerate() {
            let commands = document.iter().find(|(name, _)| name == tool.name);
            let (_, commands) = commands.with_context(|| tool.name.to_owned())?;
            let keeps_out = |command: &&String| command.contains(BLOCKED) || command.ends_with("--reload");
            for command in
                commands.iter().filter(|one| matches!(self.policy, Policy::Closed) || keeps_out(one))
            {
                match change {
                    Some(change) => drop(scene.hosts[index].run(&change(command))?),
                    None => drop(scene.type_at(index, command, Typed::PLAIN)?),
                }
            }
        }
        scene.reload()
    }

    fn run(&self, scene: &mut Scene) -> Result<()> {
        let what = format!("{:?}, {:?}", self.policy, self.tools.map(|tool| tool.name));
        let blocked = SocketAddr::new(BLOCKED.parse()?, 0);
        let (all, none) = ([TRIES; 3], [0; 3]);
        ensure!(scene.gets_in(blocked)? == all, "{what}: nothing filters yet");
        self.set(scene)?;
        scene.reload()?;
        match self.policy {
            Policy::Closed => {
                let other = scene.cluster.client_addresses()[0];
                ensure!(scene.gets_in(other)? == none, "{what}: the policy lets nobody in");
                // The agents hear each other all the same: what one sends makes the other's datagrams answers.
                scene.await_reasons(&what, "does not answer", 2)?;
            }
            Policy::Lax => ensure!(scene.gets_in(blocked)? == all, "{what}: the policy lets everybody in"),
        }

        self.type_all(scene, Some(api_port_alone))?;
        match self.policy {
            // Their policy keeps relays out.
            Policy::Closed => scene.await_reasons(&what, "does not answer", 2)?,
            // Each names its own.
            Policy::Lax => scene.await_reasons(&what, "no client is relayed over IPv4: the rule", 1)?,
        }
        let relays = scene.serves(&format!("{what}, with the API port alone"))?;
        ensure!(relays == [0; 3], "{what}: nobody is relayed: {relays:?}");
        ensure!(scene.gets_in(blocked)? == none, "{what}: the client stays out");

        self.end(scene)?;
        self.set(scene)?;
        self.type_all(scene, None)?;
        await_well(&scene.hosts)?;
        let relays = scene.serves(&format!("{what}, with the commands"))?;
        ensure!(relays.iter().all(|&opened| opened > 0), "{what}: clients of all are relayed: {relays:?}");
        ensure!(scene.gets_in(blocked)? == none, "{what}: the client gets in nowhere");
        self.end(scene)?;
        scene.reload()?;
        await_well(&scene.hosts)
    }
}

pub fn all(scene: &mut Scene) -> Result<()> {
    scene.add_client(BLOCKED)?;
    scene.typed.insert("systemctl reload balancer".to_owned());
    for policy in [Policy::Closed, Policy::Lax] {
        for tools in [[&NFTABLES, &IPTABLES, &UFW], [&FIREWALLD, &NFTABLES, &FIREWALLD]] {
            Round { tools, policy }.run(scene)?;
        }
    }
    Ok(())
}
