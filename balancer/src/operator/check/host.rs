//! The kernel and the interfaces.

use anyhow::Result;

use super::Finding;
use crate::{
    config::{Config, Hook},
    datapath,
    host::{
        interfaces::{self, Interfaces, Routes},
        privileges, xdp_support,
    },
};

pub(super) fn kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "?".into(), |name| name.release().to_string_lossy().into_owned());
    // Before Linux 5.11, programs and maps count against RLIMIT_MEMLOCK. If it cannot be raised, loading fails below.
    let _: Result<()> = privileges::raise_limits();
    let loaded = datapath::Kernel::ask().and_then(|kernel| datapath::load_object(&kernel, |_| {}));
    match loaded {
        Ok(_) => Finding::good("kernel", format!("{release} accepts every program")),
        Err(error) => {
            Finding::fatal("kernel", format!("{release}: {error:#}; Linux 5.10 or newer is needed"))
        }
    }
}

pub(super) async fn devices(
    config: &Config,
    links: &Interfaces,
    routes: &mut Routes,
) -> Result<Vec<Finding>> {
    let all = links.list().await?;
    let own = &config.cluster.this().addresses;
    let others: Vec<_> = config.cluster.others().flat_map(|other| other.addresses.clone()).collect();
    let arrive = interfaces::arrivals(routes, &all, own, &others);
    Ok(match interfaces::api_interfaces(&all, config.api.interfaces.as_deref(), own, &arrive) {
        Ok(api) => {
            let mut findings = Vec::new();
            for device in api {
                let hook = datapath::hook_of_this_kernel(&device.name).name();
                let text = format!("{}: hook {hook}, MTU {}", device.name, device.mtu);
                findings.push(match xdp_support::why_not(device, &all, config.api.hook) {
                    None => Finding::good(
                        "interface",
                        format!("{text}; native XDP as well, if the driver supports it"),
                    ),
                    Some(why) if config.api.hook == Hook::Xdp => {
                        Finding::doubtful("interface", format!("{text}; no XDP: {why}"))
                    }
                    Some(why) => Finding::good("interface", format!("{text}; no XDP: {why}")),
                });
            }
            findings
        }
        Err(error) => vec![Finding::fatal("interface", format!("{error:#}"))],
    })
}
