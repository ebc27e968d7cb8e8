//! Juju's controllers as an operator finds them: Debians that systemd has booted, with Juju's files, a stand-in for jujud, and
//! the balancer's package at hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::juju::agent_conf::{AgentConf, Format, Secrets};
use crate::juju::server::Options;
use crate::juju::tls::Identity;
use crate::machines::debian::{Debian, files};
use crate::support::eventually::wait_for;
use crate::support::files::write;
use crate::support::process::fixture;

/// A unit changes its state within this, on a busy machine too.
pub const UNIT: Duration = Duration::from_secs(30);

/// The two packages of `cargo xtask package --verify`, the older one first.
pub fn packages() -> Result<[PathBuf; 2]> {
    let list = std::env::var("BALANCER_PACKAGES").context("run this by `cargo xtask package --verify`")?;
    let paths: Vec<PathBuf> = list.split(':').map(PathBuf::from).collect();
    paths.try_into().ok().context("two packages")
}

/// Boots a Debian on each controller's host, with Juju's files, a stand-in for jujud, and the packages in `/root`. The variable
/// `system` names the Debian's directory.
pub fn boot(cluster: &mut Cluster, system: &str) -> Result<Vec<Debian>> {
    let system = std::env::var(system).context("run this by `cargo xtask package --verify`")?;
    let (secrets, identity) = (Secrets::fresh(), Identity::make()?);
    let addresses = cluster.addresses();
    cluster.servers.clear();
    let mut hosts = Vec::new();
    for (index, host) in cluster.net.controllers.iter().enumerate() {
        let directory = Debian::prepare(cluster.directory(), &host.name, Path::new(&system))?;
        let files = files(&directory);
        let conf = AgentConf::new(&files.join("var/lib/juju"), index, Format::V3, &secrets)?;
        conf.with_identity(&identity).write(&addresses)?;
        let introspection = format!("/var/lib/juju/agents/machine-{index}/introspection.socket");
        let options = Options {
            name: host.name.clone(),
            introspection: Some(introspection.into()),
            ..Options::default()
        };
        let put = |path: &str, text: &str| {
            let path = files.join(path);
            fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            write(&path, text)
        };
        let options = serde_json::to_string(&options)?;
        put(
            &format!("etc/systemd/system/jujud-machine-{index}.service"),
            &format!("[Service]\nExecStart=/usr/local/bin/jujud '{options}'\nLimitNOFILE=64000\n"),
        )?;
        put(
            "etc/systemd/system/multi-user.target.d/jujud.conf",
            &format!("[Unit]\nWants=jujud-machine-{index}.service\n"),
        )?;
        put("usr/local/bin/jujud", "")?;
        fs::copy(fixture("stand-in-server")?, files.join("usr/local/bin/jujud"))?;
        for (package, place) in packages()?.iter().zip(["root", "root/newer"]) {
            fs::create_dir_all(files.join(place))?;
            fs::copy(package, files.join(place).join(package.file_name().context("a package has a name")?))?;
        }
        hosts.push((&host.namespace, directory));
    }
    hosts.into_iter().map(|(namespace, directory)| Debian::boot(namespace, directory)).collect()
}

/// What `balancer status --json` says.
pub fn status(host: &Debian) -> Result<Value> {
    let output = host.output("balancer status --json")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until all is well in each host's view.
pub fn await_well(hosts: &[Debian]) -> Result<()> {
    for host in hosts {
        wait_for(UNIT, "all is well", || host.run("balancer status"), |text| text.starts_with("OK"))?;
    }
    Ok(())
}
