//! nftables rule sets of hosts: default-deny with conntrack, and blocked relay ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::network::namespace::Namespace;
use crate::support::process::feed;

const DEFAULT_DENY: &str = "
table inet balancer_deny {
    counter invalid { }
    counter relayed { }
    counter refused { }
    set invalids {
        typeof tcp sport . tcp dport . tcp flags . tcp sequence . tcp ackseq
        flags dynamic
        size 64
    }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state invalid add @invalids { tcp sport . tcp dport . tcp flags . tcp sequence . tcp ackseq }
        ct state invalid counter name invalid drop
        ct state established,related accept
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport 17070 accept
        tcp dport 17079 accept
        tcp dport 17080-17095 counter name relayed accept
        udp dport 17078 accept
        counter name refused
    }
}
";

/// Adds a default-deny input chain with conntrack, with the openings that the balancer's documentation asks for:
/// established and related flows, `lo`, ICMP, the API port, the redirector's, the relay ports and peer sync. It drops packets that
/// connection tracking calls invalid before all else.
pub fn default_deny(namespace: &Namespace) -> Result<()> {
    apply(namespace, DEFAULT_DENY)
}

/// Packets that the chain of [`default_deny`] has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counted {
    /// Invalid by connection tracking, and dropped.
    pub invalid: u64,
    /// Let in to a relay port, and of no connection known before.
    pub relayed: u64,
    /// Let in by no rule, and dropped.
    pub refused: u64,
}

/// Reads the counters of a namespace that has [`default_deny`].
pub fn counted(namespace: &Namespace) -> Result<Counted> {
    let text = namespace.exec("nft list counters table inet balancer_deny")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    // counter NAME { packets NUMBER bytes NUMBER }
    let counters: BTreeMap<&str, u64> = words
        .windows(5)
        .filter(|row| row[0] == "counter" && row[3] == "packets")
        .filter_map(|row| Some((row[1], row[4].parse().ok()?)))
        .collect();
    let of = |name| counters.get(name).copied().with_context(|| format!("no counter {name} in {text}"));
    Ok(Counted { invalid: of("invalid")?, relayed: of("relayed")?, refused: of("refused")? })
}

/// TCP packets that the chain of [`default_deny`] has found invalid, 64 of them at most, as nft lists them: source and
/// destination port, flags, sequence number and acknowledgement.
pub fn invalids(namespace: &Namespace) -> Result<String> {
    let text = namespace.exec("nft list set inet balancer_deny invalids")?;
    Ok(text.split_once("elements = ").map_or("none of TCP", |(_, listed)| listed).trim().to_owned())
}

/// Drops TCP to `ports` (such as `17080-17095`) before any other rule can accept it.
pub fn drop_ports(namespace: &Namespace, ports: &str) -> Result<()> {
    filter_input(namespace, &format!("tcp dport {ports} drop"))
}

/// Adds rules before those of [`default_deny`].
pub fn filter_input(namespace: &Namespace, rules: &str) -> Result<()> {
    apply(
        namespace,
        &format!(
            "table inet balancer_block {{
                chain input {{ type filter hook input priority filter - 10; {rules}; }}
            }}"
        ),
    )
}

/// Drops packets that connection tracking calls invalid, also those that a bridge forwards.
pub fn drop_invalid(namespace: &Namespace) -> Result<()> {
    let hooks = ["prerouting", "forward"].map(|hook| {
        format!("chain {hook} {{ type filter hook {hook} priority filter; ct state invalid drop; }}")
    });
    apply(namespace, &format!("table inet balancer_invalid {{\n{}\n}}", hooks.join("\n")))
}

/// Drops IPv6 packets whose source is routed by another interface, as firewalld's `IPv6_rpfilter` does.
pub fn strict_ipv6(namespace: &Namespace) -> Result<()> {
    apply(
        namespace,
        "table ip6 balancer_strict {
            chain prerouting {
                type filter hook prerouting priority raw;
                meta l4proto ipv6-icmp accept
                fib saddr . iif oif missing drop
            }
        }",
    )
}

/// Drops TCP from `client` to `port`, as an operator blocks a client of one service.
pub fn block_at(namespace: &Namespace, client: IpAddr, port: u16) -> Result<()> {
    let family = if client.is_ipv4() { "ip" } else { "ip6" };
    apply(
        namespace,
        &format!(
            "table inet balancer_client {{
                chain input {{
                    type filter hook input priority filter - 10;
                    {family} saddr {client} tcp dport {port} drop
                }}
            }}"
        ),
    )
}

/// Ends [`block_at`].
pub fn unblock(namespace: &Namespace) -> Result<()> {
    apply(namespace, "delete table inet balancer_client")
}

/// Ends [`drop_ports`].
pub fn allow_ports(namespace: &Namespace) -> Result<()> {
    apply(namespace, "delete table inet balancer_block")
}

/// Drops all frames between the two ports of each line, both ways, on a switch's bridges.
pub(super) fn cut(switch: &Namespace, lines: &[(&str, &str)]) -> Result<()> {
    let rule = |(one, other): &(&str, &str)| {
        format!("iifname {one} oifname {other} drop; iifname {other} oifname {one} drop;")
    };
    let rules: String = lines.iter().map(rule).collect();
    apply(
        switch,
        &format!(
            "table bridge balancer_cut {{
                chain forward {{ type filter hook forward priority filter; {rules} }}
            }}"
        ),
    )
}

/// Ends [`cut`].
pub(super) fn mend(switch: &Namespace) -> Result<()> {
    apply(switch, "delete table bridge balancer_cut")
}

pub fn remove(namespace: &Namespace) -> Result<()> {
    apply(namespace, "flush ruleset")
}

fn apply(namespace: &Namespace, rules: &str) -> Result<()> {
    feed(namespace.command("nft").args(["-f", "-"]), rules).map(drop)
}
