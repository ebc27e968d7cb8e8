//! Other ways to spread connections, at controller a: HAProxy, nginx, nftables.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::bench::ways::Setting;
use crate::cluster::API_PORT;
use crate::network::namespace::Namespace;
use crate::support::eventually::{SOON, eventually};
use crate::support::files::{read, write};
use crate::support::process::{Process, feed};

/// The table of [`table`].
pub const TABLE: &str = "bench";
/// Each takes servers' answers at an address of its own. At one and the same address, the ports of one's closed connections
/// would still rest at the servers when the next one uses them, with timestamps that do not go on from theirs.
const NFT: Ipv4Addr = Ipv4Addr::new(10, 77, 9, 1);
const HAPROXY: Ipv4Addr = Ipv4Addr::new(10, 77, 9, 2);
const NGINX: Ipv4Addr = Ipv4Addr::new(10, 77, 9, 3);

/// Gives the entry the addresses that the rivals use.
pub fn add_addresses(entry: &Namespace) -> Result<()> {
    let addresses = [NFT, HAPROXY, NGINX].map(|address| format!("addr add {address}/16 dev eth0\n"));
    entry.ip(&addresses.concat())
}

/// Loads nftables rules.
pub fn rules(namespace: &Namespace, rules: &str) -> Result<()> {
    feed(namespace.command("nft").args(["-f", "-"]), rules).map(drop)
}

/// Sends connections to `port` to the `servers` in turn, and their answers back the same way.
pub fn table(port: u16, servers: &[SocketAddr]) -> String {
    let each = servers.iter().enumerate().map(|(index, server)| format!("{index} : {}", server.ip()));
    let map = each.collect::<Vec<_>>().join(", ");
    let count = servers.len();
    format!(
        "table ip {TABLE} {{
            chain to {{
                type nat hook prerouting priority dstnat;
                tcp dport {port} dnat to numgen inc mod {count} map {{ {map} }}
            }}
            chain from {{
                type nat hook postrouting priority srcnat;
                oifname eth0 tcp dport {port} snat to {NFT}
            }}
        }}\n"
    )
}

/// A running HAProxy or nginx; ended on drop.
pub struct Proxy {
    pub process: Process,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // In good order: nginx ends its workers itself. Both calls fail only if it has ended already or does not listen.
        let _ = self.process.signal(Signal::SIGTERM);
        let _ = self.process.wait(SOON);
    }
}

impl Proxy {
    /// Starts it from `packages`, where Debian's are unpacked, and waits until it takes connections.
    pub fn start(
        setting: Setting,
        namespace: &Namespace,
        directory: &Path,
        packages: &Path,
        servers: &[SocketAddr],
    ) -> Result<Self> {
        let (name, program, config) = match setting {
            Setting::Haproxy => ("haproxy", "usr/sbin/haproxy", haproxy(servers)),
            Setting::Nginx => ("nginx", "usr/sbin/nginx", nginx(packages, directory, servers)),
            Setting::Direct | Setting::Routed | Setting::Nft | Setting::Balanced(_) => {
                bail!("{setting:?} has no proxy")
            }
        };
        let program = packages.join(program);
        ensure!(program.is_file(), "no {}: `cargo xtask bench` fetches it", program.display());
        let file = directory.join(format!("{name}.conf"));
        write(&file, &config)?;
        let log = directory.join(format!("{name}.log"));
        let output =
            std::fs::File::create(&log).with_context(|| format!("failed to make {}", log.display()))?;
        let mut command = namespace.command(program);
        command.env("LD_LIBRARY_PATH", libraries(packages)).stderr(Stdio::from(output));
        if setting == Setting::Haproxy {
            command.arg("-db").arg("-f").arg(&file);
        } else {
            command.args(["-e", "stderr", "-g", "daemon off;", "-c"]).arg(&file);
        }
        let mut process = Process::start(command, name.to_owned())?;
        eventually(SOON, &format!("{name} takes connections"), || {
            if let Some(status) = process.exit_status()? {
                bail!("it has ended with {status}: {}", read(&log)?);
            }
            let address = SocketAddr::from(([127, 0, 0, 1], API_PORT));
            let dial = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
            namespace.enter(dial)?.map(drop).context(name)
        })?;
        Ok(Self { process })
    }
}

/// The directories of the shared libraries of unpacked packages.
fn libraries(packages: &Path) -> String {
    let of = |entries: PathBuf| std::fs::read_dir(entries).into_iter().flatten().flatten();
    let places = ["lib", "usr/lib"].map(|place| packages.join(place));
    let found = places.into_iter().flat_map(of).map(|entry| entry.path()).filter(|path| path.is_dir());
    found.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

fn haproxy(servers: &[SocketAddr]) -> String {
    let mut text = format!(
        "global\n  maxconn 9900\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
         listen api\n  bind :{API_PORT} backlog 4096\n  balance leastconn\n"
    );
    for (index, server) in servers.iter().enumerate() {
        let _ = writeln!(text, "  server s{index} {server} source {HAPROXY}");
    }
    text
}

fn nginx(packages: &Path, directory: &Path, servers: &[SocketAddr]) -> String {
    let module = packages.join("usr/lib/nginx/modules/ngx_stream_module.so");
    let each = servers.iter().map(|server| format!("server {server}; ")).collect::<Vec<_>>().concat();
    let module =
        if module.is_file() { format!("load_module {};\n", module.display()) } else { String::new() };
    format!(
        "{module}user root;\nworker_processes auto;\nworker_rlimit_nofile 20000;\npid {}/nginx.pid;\n\
         events {{ worker_connections 19000; }}\n\
         stream {{\n  upstream api {{ least_conn; {each}}}\n  \
         server {{ listen {API_PORT} backlog=4096; proxy_pass api; proxy_bind {NGINX}; }}\n}}\n",
        directory.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_is_in_the_rules() {
        let servers = ["10.77.0.12:17070", "10.77.0.13:17070"].map(|server| server.parse().unwrap());
        let text = table(17070, &servers);
        assert!(
            text.contains("tcp dport 17070 dnat to numgen inc mod 2 map { 0 : 10.77.0.12, 1 : 10.77.0.13 }")
        );
        assert!(haproxy(&servers).ends_with(
            "  server s0 10.77.0.12:17070 source 10.77.9.2\n  server s1 10.77.0.13:17070 source 10.77.9.2\n"
        ));
    }
}
