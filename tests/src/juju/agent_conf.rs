//! `agent.conf` files as Juju's agents write them on its controllers' hosts, one directory of agents a host.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::juju::tls::Identity;
use crate::support::files::write_private;
use crate::support::noise::Noise;

/// The version of Juju that writes the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Juju 2.9: MongoDB, `controllerapiport`.
    V2_9,
    /// Juju 3.x: MongoDB, a directory for transient data.
    V3,
    /// Juju 4.x: Dqlite, no shared secret; the agent is called `controller-N`.
    V4,
}

/// The secrets that all controllers of a model have in common.
#[derive(Clone)]
pub struct Secrets {
    /// `sharedsecret`; not in 4.x.
    pub shared: String,
    /// `caprivatekey`, without the lines around it.
    pub ca: String,
}

impl Secrets {
    /// Secrets of this call's own, as long as Juju's.
    pub fn fresh() -> Self {
        let mut noise = Noise::fresh();
        Self { shared: base64(&mut noise, 1008), ca: base64(&mut noise, 1600) }
    }

    /// Whether `text` gives one of them away, a line of it at least.
    pub fn are_in(&self, text: &str) -> bool {
        [&self.shared[..64], &self.shared[944..], &self.ca[..64], &self.ca[1536..]]
            .iter()
            .any(|part| text.contains(part))
    }
}

/// The file of one controller's host.
#[derive(Clone)]
pub struct AgentConf {
    juju: PathBuf,
    number: usize,
    format: Format,
    secrets: Secrets,
    /// Certificate and key of the controller; without, they only look like some.
    identity: Option<Identity>,
}

impl AgentConf {
    /// The file of machine (or controller) `number` below `juju`, the directory of Juju's on its host. Makes the directory
    /// of the file, and does not write the file yet.
    pub fn new(juju: &Path, number: usize, format: Format, secrets: &Secrets) -> Result<Self> {
        let conf = Self { juju: juju.to_owned(), number, format, secrets: secrets.clone(), identity: None };
        let directory = conf.directory();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("failed to make {}", directory.display()))?;
        Ok(conf)
    }

    /// The same file with other secrets.
    #[must_use]
    pub fn with_secrets(&self, secrets: &Secrets) -> Self {
        Self { secrets: secrets.clone(), ..self.clone() }
    }

    /// The same file with a certificate and a key that a server can use.
    #[must_use]
    pub fn with_identity(self, identity: &Identity) -> Self {
        Self { identity: Some(identity.clone()), ..self }
    }

    /// Writes the first half of the file.
    pub fn write_half(&self, addresses: &[SocketAddr]) -> Result<()> {
        let text = self.text(addresses);
        write_private(&self.path(), &text[..text.len() / 2])
    }

    /// The value for `paths.juju`.
    pub fn juju(&self) -> &Path {
        &self.juju
    }

    pub fn path(&self) -> PathBuf {
        self.directory().join("agent.conf")
    }

    /// The socket beside it, for [`crate::juju::server::Options::introspection`].
    pub fn introspection(&self) -> PathBuf {
        self.directory().join("introspection.socket")
    }

    /// Writes the file, or writes it anew as Juju does: another file, renamed over it.
    pub fn write(&self, addresses: &[SocketAddr]) -> Result<()> {
        let (path, new) = (self.path(), self.directory().join("agent.conf.new"));
        write_private(&new, &self.text(addresses))?;
        std::fs::rename(&new, &path).with_context(|| format!("failed to write {}", path.display()))
    }

    fn directory(&self) -> PathBuf {
        self.juju.join("agents").join(self.tag())
    }

    fn tag(&self) -> String {
        let kind = if self.format == Format::V4 { "controller" } else { "machine" };
        format!("{kind}-{}", self.number)
    }

    fn text(&self, addresses: &[SocketAddr]) -> String {
        let port = addresses.first().map_or(17070, SocketAddr::port);
        let version = match self.format {
            Format::V2_9 => "2.9.49",
            Format::V3 => "3.6.28",
            Format::V4 => "4.0.15",
        };
        let mut text = format!(
            "# format 2.0\ntag: {}\ndatadir: /var/lib/juju\nlogdir: /var/log/juju\nnonce: user-admin:bootstrap\n\
             jobs:\n- JobManageModel\n- JobHostUnits\nupgradedToVersion: {version}\n\
             controller: controller-5d0f6b6e-17d9-4d0b-8a53-51a7b1f7f0ce\n\
             model: model-0b5d7f2e-8ae1-4d8c-8f0a-3f1f6d2a9f11\napiaddresses:\n",
            self.tag()
        );
        for address in addresses {
            // YAML reads `[` as a list.
            let quote = if address.is_ipv6() { "'" } else { "" };
            let _infallible = writeln!(text, "- {quote}{address}{quote}");
        }
        text += "apipassword: not-the-secret\nloggingconfig: <root>=INFO\nvalues:\n  CONTAINER_TYPE: \"\"\n";
        text += "agent-logfile-max-size: 100\nagent-logfile-max-backups: 2\n";
        if let Some(Identity { authority, certificate, key }) = &self.identity {
            for (name, pem) in
                [("cacert", authority), ("controllercert", certificate), ("controllerkey", key)]
            {
                let _infallible = writeln!(text, "{name}: |\n  {}", pem.trim().replace('\n', "\n  "));
            }
        } else {
            text += &pem("controllercert", "CERTIFICATE", &"c".repeat(256));
            text += &pem("controllerkey", "PRIVATE KEY", &"k".repeat(256));
        }
        text += &pem("caprivatekey", "PRIVATE KEY", &self.secrets.ca);
        let _infallible = writeln!(text, "apiport: {port}\nstateport: 37017");
        let shared = &self.secrets.shared;
        let own = match self.format {
            Format::V2_9 => format!(
                "controllerapiport: 17071\nsharedsecret: {shared}\nmongoversion: 4.4/wiredTiger\nmongomemoryprofile: \
                 default\n"
            ),
            Format::V3 => format!(
                "transient-datadir: /var/run/juju\nsharedsecret: {shared}\njuju-db-snap-channel: 4.4/stable\n\
                 querytracingthreshold: 1s\nobjectstoretype: file\n"
            ),
            Format::V4 => "transient-datadir: /var/run/juju\nopentelemetrysampleratio: \"0.1000\"\n\
                           objectstoretype: file\ndqlite-port: 17666\n"
                .to_owned(),
        };
        text + &own
    }
}

/// A PEM block as YAML's block of lines.
fn pem(key: &str, kind: &str, base64: &str) -> String {
    let mut text = format!("{key}: |\n  -----BEGIN {kind}-----\n");
    for line in base64.as_bytes().chunks(64) {
        let _infallible = writeln!(text, "  {}", String::from_utf8_lossy(line));
    }
    text + "  -----END " + kind + "-----\n"
}

fn base64(noise: &mut Noise, length: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    (0..length).map(|_| char::from(DIGITS[noise.below(64)])).collect()
}

#[cfg(test)]
mod tests {
    use balancer::juju::agent_conf::{self, SecretField};

    use super::*;

    #[test]
    fn the_balancer_reads_every_format() {
        let secrets = Secrets::fresh();
        let directory = std::env::temp_dir().join(format!("agent-conf-{}", std::process::id()));
        let addresses: Vec<SocketAddr> =
            ["10.77.0.11:17070", "[fd77::12]:17070"].map(|address| address.parse().unwrap()).to_vec();
        let rows = [
            (Format::V2_9, "machine-3", SecretField::SharedSecret, &secrets.shared),
            (Format::V3, "machine-3", SecretField::SharedSecret, &secrets.shared),
            (Format::V4, "controller-3", SecretField::CaPrivateKey, &secrets.ca),
        ];
        for (format, tag, field, secret) in rows {
            let conf = AgentConf::new(&directory, 3, format, &secrets).unwrap();
            for addresses in [&addresses[..1], &addresses] {
                conf.write(addresses).unwrap();
                let found = agent_conf::find(conf.juju()).unwrap().unwrap();
                assert_eq!((found.path, found.tag.as_str()), (conf.path(), tag));
                assert_eq!((found.api_port, &found.addresses[..]), (Some(17070), addresses));
                let found = found.secret.unwrap();
                assert_eq!(found.field(), field);
                assert!(secrets.are_in(found.expose()) && found.expose().contains(&secret[..64]));
            }
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
}
