//! Juju's `agent.conf`: on a controller it holds the API's port, the controllers' addresses and their shared secret.
//!
//! The file is YAML after a first line `# format 2.0`, the same from Juju 2.9 to 4.x; later versions add keys, which are
//! ignored. It is full of secrets, so no message quotes a word of it, not even of a line that is not YAML.

mod follow;
mod identity;

use std::{
    fmt,
    fs::{self, File},
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, IgnoredAny},
};
use zeroize::Zeroizing;

pub use self::{
    follow::Follow,
    identity::{Identity, identity},
};

/// The directory in which every version of Juju keeps its agents' files.
pub const JUJU: &str = "/var/lib/juju";
/// Most API addresses that are used; a host of containers has one for each of its bridges.
pub const MAX_ADDRESSES: usize = 1_024;

/// The name of an agent's introspection socket, beside its `agent.conf`.
pub const INTROSPECTION: &str = "introspection.socket";

const NAME: &str = "agent.conf";
const PEM_BEGINS: &str = "-----BEGIN";
const PEM_ENDS: &str = "-----END";
const FORMAT: &str = "# format 2.0";
const MAX_BYTES: u64 = 1 << 20; // certificates and keys take some 20 kB

/// The content of a controller's `agent.conf`.
#[derive(Clone, Debug)]
pub struct AgentConf {
    pub path: PathBuf,
    /// The agent's tag, such as `machine-0` or `controller-0`.
    pub tag: String,
    /// TCP port of the API: `apiport`, or the port of the first address.
    pub api_port: Option<u16>,
    /// `apiaddresses`: every address of every controller, in the file's order. IPv4-mapped ones are IPv4.
    pub addresses: Vec<SocketAddr>,
    /// The entries of `apiaddresses` that are not an IP address with a port, such as host names.
    pub skipped: Vec<String>,
    /// How many entries there are beyond [`MAX_ADDRESSES`]; nothing uses them.
    pub beyond: usize,
    /// The secret that every controller has in its `agent.conf`.
    pub secret: Option<Secret>,
}

/// A secret of Juju's, from which the cluster's key is derived; wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret {
    field: SecretField,
    text: Zeroizing<String>,
}

/// The field of the file that holds a [`Secret`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecretField {
    /// `sharedsecret`: MongoDB's key, up to Juju 3.6.
    SharedSecret,
    /// `caprivatekey`: the private key of the controllers' certificate authority, in PEM.
    CaPrivateKey,
}

impl Secret {
    pub fn field(&self) -> SecretField {
        self.field
    }

    /// Its text without surrounding white space, which is the same on all controllers.
    pub fn expose(&self) -> &str {
        self.text.trim()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, secret)", self.field)
    }
}

impl fmt::Display for SecretField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SharedSecret => "sharedsecret",
            Self::CaPrivateKey => "caprivatekey",
        })
    }
}

/// The `agent.conf` of the one controller below `juju` (see [`JUJU`]), or `None` if this host is not a controller.
///
/// Fails for several controllers. A file that cannot be read counts only where no other belongs to a controller.
pub fn find(juju: &Path) -> Result<Option<AgentConf>> {
    let agents = juju.join("agents");
    let listed = match fs::read_dir(&agents) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        listed => listed.with_context(|| format!("failed to list {}", agents.display()))?,
    };
    let (mut found, mut failed) = (Vec::new(), None);
    for entry in listed {
        let entry = entry.with_context(|| format!("failed to list {}", agents.display()))?;
        let name = entry.file_name();
        let file = entry.path().join(NAME);
        // Units have an agent.conf too, and containers on a controller are machines of their own.
        let is_candidate =
            name.to_str().is_some_and(|name| name.starts_with("machine-") || name.starts_with("controller-"));
        if !is_candidate || !file.try_exists().unwrap_or(true) {
            continue;
        }
        match read(&file) {
            Ok(Some(conf)) => found.push(conf),
            Ok(None) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    match (found.len(), failed) {
        (0, Some(error)) => Err(error),
        (0 | 1, _) => Ok(found.pop()),
        _ => {
            let paths: Vec<_> = found.iter().map(|conf| conf.path.display().to_string()).collect();
            bail!(
                "several controllers have an agent.conf on this host, {}: remove that of the former one, or name the \
                 controllers in the configuration",
                paths.join(" and ")
            )
        }
    }
}

/// The `agent.conf` at `path`, or `None` if its agent is not a controller's.
pub fn read(path: &Path) -> Result<Option<AgentConf>> {
    parse(path, &read_text(path)?).with_context(|| format!("{} is unusable", path.display()))
}

fn read_text(path: &Path) -> Result<Zeroizing<String>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("failed to open {shown}"))?;
    // A buffer that grows would leave a copy of the secrets behind.
    let length = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_BYTES));
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 64));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("failed to read {shown}"))?;
    ensure!(
        bytes.len() as u64 <= MAX_BYTES,
        "{shown} is longer than {MAX_BYTES} bytes: it is not an agent.conf"
    );
    let text = std::str::from_utf8(&bytes).map_err(|_quotes_nothing| anyhow!("{shown} is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Parses `text`, read from `path`; `None` if the agent is not a controller's.
pub fn parse(path: &Path, text: &str) -> Result<Option<AgentConf>> {
    let raw: Raw = yaml(text)?;
    let is_controller = raw.controllercert.is_some()
        || raw.controllerkey.is_some()
        || raw.caprivatekey.is_some()
        || raw.sharedsecret.is_some();
    if !is_controller {
        return Ok(None);
    }
    let is_cut = |text: &Text| text.0.contains(PEM_BEGINS) && !text.0.contains(PEM_ENDS);
    ensure!(
        text.ends_with('\n') && !raw.caprivatekey.as_ref().is_some_and(is_cut),
        "it ends in the middle: it is being written, or was cut off"
    );
    let mut listed = raw.apiaddresses.unwrap_or_default();
    let beyond = listed.len().saturating_sub(MAX_ADDRESSES);
    listed.truncate(MAX_ADDRESSES);
    let (mut addresses, mut skipped) = (Vec::new(), Vec::new());
    for text in listed {
        match text.parse::<SocketAddr>() {
            Ok(address) => {
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Err(_a_name) => skipped.push(text),
        }
    }
    let port = match raw.apiport {
        Some(port) => Some(u16::try_from(port).ok().filter(|port| *port != 0).with_context(|| {
            format!("apiport is {port}, which is not a port: set api.port in the configuration")
        })?),
        None => addresses.first().map(SocketAddr::port).filter(|port| *port != 0),
    };
    let secret = |field, text: Option<Text>| {
        let text = text?.0;
        (!text.trim().is_empty()).then_some(Secret { field, text })
    };
    Ok(Some(AgentConf {
        path: path.to_owned(),
        tag: raw.tag.unwrap_or_default(),
        api_port: port,
        addresses,
        skipped,
        beyond,
        secret: secret(SecretField::SharedSecret, raw.sharedsecret)
            .or_else(|| secret(SecretField::CaPrivateKey, raw.caprivatekey)),
    }))
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T> {
    let first = text.lines().next().unwrap_or_default().trim_end();
    ensure!(first == FORMAT, "its first line is not \"{FORMAT}\", the only format that is supported");
    serde_saphyr::from_str(text).map_err(|error| {
        // The text of this error may quote the line.
        let place = error.location().map_or_else(String::new, |at| format!("line {}, ", at.line()));
        anyhow!("{place}it is not the YAML that Juju writes; look into the log of jujud")
    })
}

impl AgentConf {
    /// The controllers' IP addresses, each once and in ascending order, IPv4 first. Where the files agree, so do these
    /// lists.
    pub fn ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<_> = self.addresses.iter().map(SocketAddr::ip).collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    tag: Option<String>,
    apiport: Option<i64>,
    apiaddresses: Option<Vec<String>>,
    controllercert: Option<IgnoredAny>,
    controllerkey: Option<IgnoredAny>,
    caprivatekey: Option<Text>,
    sharedsecret: Option<Text>,
}

/// Text that is wiped when dropped. (The YAML parser's own copies are not.)
struct Text(Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        text.map(|text| Self(Zeroizing::new(text))).map_err(|_may_quote| D::Error::custom("not a text"))
    }
}

#[cfg(test)]
pub(crate) mod tests;
