//! Decides on which interfaces native XDP is sound, with a reason where it is not.
//!
//! A program in the driver sees frames as they come off the wire. A virtual interface also hands over frames of other
//! interfaces on the same host, with checksums that a device was to complete: relayed, they would leave broken. A veth
//! besides puts the frames of a program into a ring that is emptied only while its other end has a program too
//! (`veth_xdp_flush`, Linux 6.18), which a container cannot see. Generic XDP is never used: it stalls bulk transfers.

use std::{env, fs};

use crate::{config::Hook, host::interfaces::Interface};

/// The kinds of interfaces that take frames from another one, by a tag or an address.
const STACKED: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "macsec"];

/// The reason why `device`, one of `all`, must not get the XDP program, if there is one.
pub fn why_not(device: &Interface, all: &[Interface], hook: Hook) -> Option<String> {
    // In test runs the other end of every veth has an XDP program.
    let veths_are_sound = env::var_os("BALANCER_HOOK").is_some_and(|hook| hook == "xdp");
    let virtual_kind = device.kind.clone().filter(|kind| !(veths_are_sound && kind == "veth"));
    let forwards = ["ipv4", "ipv6"].iter().any(|family| forwards(family, &device.name));
    judge(hook, &device.name, virtual_kind.as_deref(), stacked_on(device, all), forwards).err()
}

fn judge(
    hook: Hook,
    name: &str,
    virtual_kind: Option<&str>,
    stacked: Option<&str>,
    forwards: bool,
) -> Result<(), String> {
    if hook == Hook::Tc {
        return Err("api.hook is \"tc\"".into());
    }
    if let Some(kind) = virtual_kind {
        return Err(format!("{name} is a {kind}, no hardware: frames may arrive without checksums"));
    }
    if let Some(other) = stacked {
        return Err(format!(
            "{other} takes frames from {name}, which the driver may hand over as {name}'s own"
        ));
    }
    if !forwards {
        return Err(format!(
            "the kernel tells programs a next hop only where it forwards: run `sysctl net.ipv4.conf.{name}.forwarding=1`"
        ));
    }
    Ok(())
}

/// The interface that takes frames from `device`, if there is one.
fn stacked_on<'a>(device: &Interface, all: &'a [Interface]) -> Option<&'a str> {
    let takes = |other: &&Interface| {
        other.lower == Some(device.index) && other.kind.as_deref().is_some_and(|kind| STACKED.contains(&kind))
    };
    all.iter().find(takes).map(|other| other.name.as_str())
}

/// `net.FAMILY.conf.NAME.forwarding`, in this thread's network namespace.
fn forwards(family: &str, name: &str) -> bool {
    let path = format!("/proc/sys/net/{family}/conf/{name}/forwarding");
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_where_every_frame_is_whole() {
        // Virtual kind, stacked, forwards, part of the reason.
        let rows = [
            (None, None, true, None),
            (Some("veth"), None, true, Some("eth0 is a veth, no hardware")),
            (Some("bridge"), None, true, Some("eth0 is a bridge")),
            (None, Some("eth0.7"), true, Some("eth0.7 takes frames from eth0")),
            (None, None, false, Some("`sysctl net.ipv4.conf.eth0.forwarding=1`")),
        ];
        for (kind, stacked, forwards, reason) in rows {
            for hook in [Hook::Auto, Hook::Xdp] {
                let judged = judge(hook, "eth0", kind, stacked, forwards);
                match reason {
                    None => assert_eq!(judged, Ok(())),
                    Some(reason) => assert!(judged.is_err_and(|why| why.contains(reason)), "{reason}"),
                }
            }
        }
        assert_eq!(judge(Hook::Tc, "eth0", None, None, true), Err("api.hook is \"tc\"".into()));
    }

    #[test]
    fn a_vlan_takes_frames_and_a_veths_other_end_does_not() {
        let interface = |index, name: &str, kind: Option<&str>, lower| Interface {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            lower,
            up: true,
            ethernet: true,
            ..Interface::default()
        };
        let eth0 = interface(2, "eth0", None, None);
        let veth = interface(3, "veth0", Some("veth"), Some(2));
        let vlan = interface(4, "eth0.7", Some("vlan"), Some(2));
        assert_eq!(stacked_on(&eth0, &[eth0.clone(), veth.clone()]), None);
        assert_eq!(stacked_on(&eth0, &[eth0.clone(), veth, vlan]), Some("eth0.7"));
    }
}
