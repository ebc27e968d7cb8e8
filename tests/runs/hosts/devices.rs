//! Devices that some kernels have as modules, and others not at all.

use anyhow::{Result, ensure};
use tests::network::namespace::Namespace;
use tests::network::tunnel::TunnelKind;

use crate::NETWORKS;
use crate::contract::Row;
use crate::layout::{Layout, OWNER};

/// Runs a row if this kernel has devices of this `kind`. Machines of our own must have them.
fn with(kind: &str, row: &Row) -> Result<()> {
    let probe = Namespace::create(&format!("bal-{}-probe", row.tag))?;
    probe.ip("link add under type veth peer name over\n")?;
    let options = match kind {
        "vlan" => "link under name probe type vlan id 9",
        "vrf" => "name probe type vrf table 9",
        kind => &format!("name probe type {kind}"),
    };
    if let Err(error) = probe.ip(&format!("link add {options}\n")) {
        ensure!(std::env::var_os("BALANCER_VM").is_none(), "no device of the type {kind}: {error:#}");
        println!("{}: not tried, as this kernel has no devices of the type {kind}", row.tag);
        return Ok(());
    }
    // Small enough for an emulated processor.
    Row { clients: 6, held: 4, bytes: 1_000_000, ..row.clone() }.prove()
}

#[test]
#[ignore = "some kernels have no such devices: `cargo xtask hosts` runs it where they are"]
fn addresses_on_vlans() -> Result<()> {
    with("vlan", &Row { relays: true, ..Row::new("hv", Layout::Vlans) })
}

#[test]
#[ignore = "some kernels have no such devices: `cargo xtask hosts` runs it where they are"]
fn addresses_on_bonds() -> Result<()> {
    with("bond", &Row { relays: true, ..Row::new("hb", Layout::Bonds) })
}

#[test]
#[ignore = "some kernels have no such devices: `cargo xtask hosts` runs it where they are"]
fn clients_in_a_vrf() -> Result<()> {
    with("vrf", &Row::new("hr", Layout::Vrfs))
}

#[test]
#[ignore = "some kernels have no such devices: `cargo xtask hosts` runs it where they are"]
fn an_owners_address_on_a_device_that_leads_nowhere() -> Result<()> {
    with("dummy", &Row::new("hd", Layout::OnDummy { kind: "dummy", at: &[OWNER] }))
}

#[test]
#[ignore = "some kernels have no such devices: `cargo xtask hosts` runs it where they are"]
fn a_wireguard_tunnel_between_owner_and_clients() -> Result<()> {
    with("wireguard", &Row { told: &[NETWORKS], ..Row::new("hw", Layout::Tunnel(TunnelKind::WireGuard)) })
}
