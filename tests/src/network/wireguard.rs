//! A tunnel between two hosts by the kernel's own WireGuard.

use std::process::Command;

use anyhow::Result;

use crate::network::namespace::Namespace;
use crate::support::process::{feed, run};

/// The port of both ends.
const PORT: &str = "51820";

/// Makes the device `name` in both namespaces and sets it up. It takes packets of any address, has no address itself, and
/// no route leads there. The ends have addresses on `eth0` for the tunnel alone.
pub fn join(one: &Namespace, other: &Namespace, name: &str) -> Result<()> {
    let addresses = ["10.76.0.1", "10.76.0.2"];
    let keys = [run(Command::new("wg").arg("genkey"))?, run(Command::new("wg").arg("genkey"))?];
    for (near, end) in [one, other].into_iter().enumerate() {
        let far = 1 - near;
        end.ip(&format!("addr add {}/30 dev eth0\nlink add {name} type wireguard\n", addresses[near]))?;
        let public = feed(Command::new("wg").arg("pubkey"), &keys[far])?;
        let mut command = end.command("wg");
        command.args(["set", name, "listen-port", PORT, "private-key", "/proc/self/fd/0"]);
        command.args(["peer", public.trim(), "endpoint", &format!("{}:{PORT}", addresses[far])]);
        // Both ends speak first: a firewall that lets in answers only is open then.
        command.args(["allowed-ips", "0.0.0.0/0,::/0", "persistent-keepalive", "1"]);
        feed(&mut command, &keys[near])?;
        end.ip(&format!("link set {name} up\n"))?;
    }
    Ok(())
}
