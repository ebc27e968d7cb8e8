//! Hosts and networks as they are: each layout and event is a row, and each row has the same contract. The control is the
//! same without the balancer.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

mod contract;
mod devices;
mod event;
mod judge;
mod layout;
mod long;
mod told;

use std::time::Duration;

use anyhow::Result;
use tests::network::tunnel::TunnelKind;

use crate::contract::Row;
use crate::event::{Event, What};
use crate::layout::{Layout, OWNER};
use crate::told::Told;

/// The controller that relays.
const ENTRY: usize = 0;

/// Tests of rows: the name, the tag, the layout, and whatever else a row has.
macro_rules! rows {
    ($($name:ident: $tag:literal, $layout:expr $(, $field:ident = $value:expr)*;)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            Row { $($field: $value,)* ..Row::new($tag, $layout) }.prove()
        }
    )+};
}

/// [`rows`] that `cargo xtask test` has no time for.
macro_rules! more_rows {
    ($($name:ident: $tag:literal, $layout:expr $(, $field:ident = $value:expr)*;)+) => {$(
        #[test]
        #[ignore = "one of more rows: `cargo xtask hosts` runs it"]
        fn $name() -> Result<()> {
            Row { $($field: $value,)* ..Row::new($tag, $layout) }.prove()
        }
    )+};
}

const fn once(what: What) -> Event {
    Event { what, lasts: Duration::ZERO }
}

const fn lasting(what: What, seconds: u64) -> Event {
    Event { what, lasts: Duration::from_secs(seconds) }
}

const fn relay_ports(at: &'static [usize], rules: &'static str) -> Layout {
    Layout::RelayPorts { at, rules }
}

const RESET: &str = "tcp dport 17080-17095 reject with tcp reset";
const DROP: &str = "tcp dport 17080-17095 drop";
const CONTROLLERS_ONLY: &str = "tcp dport 17080-17095 ip saddr 10.77.0.11-10.77.0.13 accept; \
                                tcp dport 17080-17095 ip6 saddr fd77::11-fd77::13 accept; \
                                tcp dport 17080-17095 reject with tcp reset";

const fn told(at: usize, words: &'static [&'static str]) -> Told {
    Told { at, words }
}

const REFUSES_IPV4: Told = told(
    ENTRY,
    &[
        "no client is relayed to b over IPv4",
        "10.77.0.12:17080 refuses",
        "let TCP port 17080 through the firewall of b",
    ],
);
const REFUSES_IPV6: Told = told(
    ENTRY,
    &[
        "no client is relayed to b over IPv6",
        "[fd77::12]:17080 refuses",
        "let TCP port 17080 through the firewall of b",
    ],
);
const SILENT_IPV4: Told = told(
    ENTRY,
    &["no client is relayed to b over IPv4", "does not answer", "does a firewall drop TCP port 17080"],
);
const SILENT_IPV6: Told = told(
    ENTRY,
    &["no client is relayed to b over IPv6", "does not answer", "does a firewall drop TCP port 17080"],
);
/// The first client of a network waits once, at any controller and for any owner that it is relayed to.
const NETWORKS: Told = told(
    ENTRY,
    &["clients in ", " are not relayed to ", "got no connection", "are its routes and rp_filter right"],
);
/// The stack answers at the owner, and nobody believes it.
const AHEAD_IPV4: Told =
    told(ENTRY, &["no client is relayed to b over IPv4", "does not answer", "`balancer check` at b"]);
const AHEAD_IPV6: Told =
    told(ENTRY, &["no client is relayed to b over IPv6", "does not answer", "`balancer check` at b"]);
const PROGRAM_AHEAD: Told = told(
    OWNER,
    &["another program runs before ingress on interface eth0", "give it a later priority or remove it"],
);
const UNNAMED: Told = told(OWNER, &["packets come in by eth0 too", "relays that come in there fail; add it"]);
const NOT_TO_B: Told = told(ENTRY, &["no client is relayed to b over IPv4"]);
const BIG_IPV4: Told = told(
    ENTRY,
    &["no client is relayed over IPv4", "BIG TCP", "`ip link set dev eth0 gro_ipv4_max_size 65536"],
);
const BIG_IPV6: Told =
    told(ENTRY, &["no client is relayed over IPv6", "BIG TCP", "`ip link set dev eth0 gro_max_size 65536"]);
const KEPT_OUT_IPV4: Told = told(
    ENTRY,
    &[
        "no client is relayed over IPv4",
        "keeps clients such as 10.77.0.102",
        "nft 'insert rule inet balancer_block",
    ],
);
const KEPT_OUT_IPV6: Told = told(
    ENTRY,
    &[
        "no client is relayed over IPv6",
        "keeps clients such as fd77::102",
        "nft 'insert rule inet balancer_block",
    ],
);

rows! {
    plain_hosts: "h0", Layout::Plain, relays = true;
    an_owner_that_rejects_at_its_relay_ports: "h1", relay_ports(&[OWNER], RESET), told = &[REFUSES_IPV4, REFUSES_IPV6];
    both_owners_drop_at_their_relay_ports: "h11", relay_ports(&[1, 2], DROP), told = &[SILENT_IPV4, SILENT_IPV6];
    a_filter_ahead_at_an_owner: "h2", Layout::FilterAhead, told = &[AHEAD_IPV4, AHEAD_IPV6, PROGRAM_AHEAD];
    programs_detached_at_an_owner: "h2d", Layout::Plain, event = Some(once(What::Detached(OWNER)));
    clients_routed_back_by_another_card: "h3b", Layout::OtherCardBack { listed: true };
    strict_reverse_paths: "h4", Layout::StrictReversePath, told = &[NETWORKS];
    a_tunnel_between_owner_and_clients: "h5", Layout::Tunnel(TunnelKind::Tun), told = &[NETWORKS];
    a_narrower_network_for_relays: "h6", Layout::Mtus { clients: 1500, relays: 1400 };
    packets_above_64_kib: "h9", Layout::BigTcp, told = &[BIG_IPV4, BIG_IPV6];
    bridges_of_hosts_that_drop_invalid_packets: "h10h", Layout::FilteringHosts, relays = true;
    clients_that_let_routers_fragment: "h15", Layout::Fragments, families = &[false], relays = true;
    an_owner_apart_for_3_seconds: "h16a3", Layout::Plain,
        event = Some(lasting(What::Apart(OWNER), 3)), held = 75, relays = true;
}

more_rows! {
    plain_hosts_with_older_hooks: "h0c", Layout::OlderHooks, relays = true;
    an_owner_that_accepts_only_controllers_at_its_relay_ports: "h1b", relay_ports(&[OWNER], CONTROLLERS_ONLY), told = &[NETWORKS];
    an_owner_that_drops_at_its_relay_ports: "h1c", relay_ports(&[OWNER], DROP), told = &[SILENT_IPV4, SILENT_IPV6];
    both_owners_reject_at_their_relay_ports: "h1d", relay_ports(&[1, 2], RESET), told = &[REFUSES_IPV4, REFUSES_IPV6];
    a_program_put_ahead_at_an_owner: "h2a", Layout::Plain, event = Some(once(What::ProgramAhead(OWNER)));
    programs_detached_at_an_entry: "h2e", Layout::Plain,
        event = Some(once(What::Detached(ENTRY)));
    a_qdisc_deleted_at_an_owner: "h2q", Layout::OlderHooks,
        event = Some(once(What::QdiscDeleted(OWNER))), busy_ends = true;
    a_qdisc_deleted_at_an_entry: "h2r", Layout::OlderHooks,
        event = Some(once(What::QdiscDeleted(ENTRY))), busy_ends = true;
    an_owners_address_on_a_dummy: "h2u", Layout::OnDummy { kind: "bridge", at: &[OWNER] };
    all_addresses_on_dummies: "h2v", Layout::OnDummy { kind: "bridge", at: &[0, 1, 2] };
    an_interface_that_an_owner_does_not_name: "h2i", Layout::UnnamedInterface, told = &[NOT_TO_B, UNNAMED];
    clients_on_another_card_than_their_address: "h3", Layout::OtherCard, relays = true;
    clients_routed_back_by_a_card_of_no_listed_address: "h3u", Layout::OtherCardBack { listed: false };
    a_much_narrower_network_for_relays: "h6j", Layout::Mtus { clients: 9000, relays: 1500 };
    an_entrys_address_moves_to_a_bridge: "h7", Layout::Plain, event = Some(once(What::ToBridge(ENTRY)));
    an_owners_address_moves_to_a_bridge: "h7b", Layout::Plain, event = Some(once(What::ToBridge(OWNER)));
    an_entrys_interface_made_anew: "h8", Layout::Plain, event = Some(once(What::Anew(ENTRY)));
    an_owners_interface_made_anew: "h8b", Layout::Plain, event = Some(once(What::Anew(OWNER)));
    a_route_between_controllers_moves: "h8r", Layout::TwoNetworks,
        event = Some(once(What::Rerouted(ENTRY, OWNER)));
    a_switch_that_drops_invalid_packets: "h10", Layout::FilteringSwitch, relays = true;
    a_client_that_every_controllers_rules_keep_out: "h28", Layout::KeptOut, told = &[KEPT_OUT_IPV4, KEPT_OUT_IPV6];
    a_line_cut_for_1_second: "h16s1", Layout::Plain,
        event = Some(lasting(What::Cut(ENTRY, OWNER), 1)), held = 75, relays = true;
    a_line_cut_for_3_seconds: "h16s3", Layout::Plain,
        event = Some(lasting(What::Cut(ENTRY, OWNER), 3)), held = 75, relays = true;
    a_line_cut_for_10_seconds: "h16s9", Layout::Plain,
        event = Some(lasting(What::Cut(ENTRY, OWNER), 10)), held = 75, relays = true;
    an_owner_apart_for_1_second: "h16a1", Layout::Plain,
        event = Some(lasting(What::Apart(OWNER), 1)), held = 75, relays = true;
    an_owner_apart_for_10_seconds: "h16a9", Layout::Plain,
        event = Some(lasting(What::Apart(OWNER), 10)), held = 75, relays = true;
    an_entry_apart_for_10_seconds: "h16e9", Layout::Plain,
        event = Some(lasting(What::Apart(ENTRY), 10)), held = 75, relays = true;
    an_owners_line_dark_for_3_seconds: "h16d3", Layout::Plain,
        event = Some(lasting(What::Dark(OWNER), 3)), held = 75, relays = true;
    an_owners_line_dark_for_10_seconds: "h16d9", Layout::Plain,
        event = Some(lasting(What::Dark(OWNER), 10)), held = 75, relays = true;
}
