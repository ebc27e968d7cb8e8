//! `balancer redirect` beside a daemon, as its unit runs it: a user without privileges, with a credential from root.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cluster::config::Config;
use crate::cluster::daemon::{Daemon, binary};
use crate::juju::agent_conf::{AgentConf, Format, Secrets};
use crate::juju::tls::Identity;
use crate::network::net::Host;
use crate::support::eventually::{SOON, eventually};
use crate::support::process::{Process, run};

pub const PORT: u16 = 17079;
/// One of the users that systemd makes up for services.
const USER: u32 = 61_200;

#[derive(Debug)]
pub struct Redirector {
    process: Process,
    pub address: SocketAddr,
}

/// Writes the `agent.conf` of the controller `host`, with the identity of the servers in `directory`, and has the
/// configuration name it, the redirector's address and the view socket.
pub fn configure(config: &mut Config, host: &str, directory: &Path) -> Result<()> {
    let juju = directory.join(format!("{host}.juju"));
    let conf = AgentConf::new(&juju, 0, Format::V3, &Secrets::fresh())?;
    conf.with_identity(&Identity::of(directory)?).write(&[])?;
    config.paths.juju = Some(juju);
    config.paths.view = Some(directory.join(format!("{host}.view.sock")));
    config.redirect.insert("listen".to_owned(), format!("[::]:{PORT}").into());
    Ok(())
}

impl Redirector {
    /// Starts it on `host`, with the configuration of `daemon`, and waits until it listens.
    pub fn start(host: &Host, daemon: &Daemon, directory: &Path) -> Result<Self> {
        let file = directory.join(format!("{}.credential", host.name));
        run(daemon.command(&["redirect"]).arg("--hand-over").arg(&file))?;
        // The file is root's, and is opened by root.
        let user =
            format!("--reuid {USER} --regid {USER} --clear-groups --bounding-set=-all --inh-caps=-all");
        let script = format!("exec setpriv {user} --no-new-privs -- \"$0\" redirect --handed < \"$1\"");
        let mut command = host.namespace.command("sh");
        command.args(["-c", &script]).arg(binary()).arg(&file);
        let process = Process::start(command, format!("redirector {}", host.name))?;
        let address = SocketAddr::new(host.address(false), PORT);
        eventually(SOON, "the redirector listens", || {
            host.namespace.enter(|| std::net::TcpStream::connect(address))?.map(drop).context("refused")
        })?;
        Ok(Self { process, address })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
