//! Juju's `agent.conf`: what a controller's own agent has on disk about the API, the controllers and their secret.
//!
//! The file is YAML after a first line `# format 2.0`, the same from Juju 2.9 to 4.x; later versions add keys, which
//! are ignored. It is full of secrets, so no message quotes a word of it, not even of a line that is no YAML.

mod follow;

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
    de::{Error as _, IgnoredAny},
};
use zeroize::Zeroizing;

pub use self::follow::Follow;

/// Where Juju keeps its agents' files, in every version.
pub const JUJU: &str = "/var/lib/juju";
/// Most API addresses that a file may list; seven controllers have fewer than half of it.
pub const MAX_ADDRESSES: usize = 64;

/// Name of the socket beside `agent.conf` on which an agent answers questions about itself.
pub const INTROSPECTION: &str = "introspection.socket";

const NAME: &str = "agent.conf";
const FORMAT: &str = "# format 2.0";
const MAX_BYTES: u64 = 1 << 20; // certificates and keys take some 20 kB

/// What a controller's `agent.conf` says.
#[derive(Clone, Debug)]
pub struct AgentConf {
    /// The file.
    pub path: PathBuf,
    /// The agent's tag, such as `machine-0` or `controller-0`.
    pub tag: String,
    /// TCP port of the API: `apiport`, or that of the first address.
    pub api_port: Option<u16>,
    /// `apiaddresses`: every address of every controller, in the file's order. IPv4-mapped ones are IPv4.
    pub addresses: Vec<SocketAddr>,
    /// Those of `apiaddresses` that are no IP address with a port, such as host names; nothing is done with them.
    pub skipped: Vec<String>,
    /// The secret that every controller has in its file.
    pub secret: Option<Secret>,
}

/// A secret of Juju's, from which the cluster's key is derived; wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret {
    field: SecretField,
    text: Zeroizing<String>,
}

/// Where in the file a [`Secret`] stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecretField {
    /// `sharedsecret`: MongoDB's key, up to Juju 3.6.
    SharedSecret,
    /// `caprivatekey`: the private key of the controllers' certificate authority, in PEM.
    CaPrivateKey,
}

impl Secret {
    /// Where it stands.
    pub fn field(&self) -> SecretField {
        self.field
    }

    /// Its text without white space around it, which is the same on all controllers.
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

/// The `agent.conf` of the one controller below `juju` (see [`JUJU`]), or `None` if this host is no controller.
///
/// # Errors
/// There are several controllers', or none that can be read and one that cannot.
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
                "several controllers have an agent.conf on this host, {}: remove what is left of a former one, or name \
                 the controllers in the configuration",
                paths.join(" and ")
            )
        }
    }
}

/// The `agent.conf` at `path`, or `None` if its agent is no controller's.
///
/// # Errors
/// It cannot be read or is no `agent.conf`; the message says where, and quotes nothing.
pub fn read(path: &Path) -> Result<Option<AgentConf>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("failed to open {shown}"))?;
    // As long as the file, so that the buffer is not moved and no copy of the secrets left behind.
    let length = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_BYTES));
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 64));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("failed to read {shown}"))?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "{shown} is longer than {MAX_BYTES} bytes: it is no agent.conf");
    let text = std::str::from_utf8(&bytes).map_err(|_quotes_nothing| anyhow!("{shown} is not UTF-8"))?;
    parse(path, text).with_context(|| format!("{shown} is of no use"))
}

/// The `agent.conf` that says `text`, or `None` if its agent is no controller's; `path` is where it stands.
///
/// # Errors
/// It is no `agent.conf`; the message says where, and quotes nothing.
pub fn parse(path: &Path, text: &str) -> Result<Option<AgentConf>> {
    let first = text.lines().next().unwrap_or_default().trim_end();
    ensure!(first == FORMAT, "its first line is not \"{FORMAT}\", the only format known here");
    let raw: Raw = serde_saphyr::from_str(text).map_err(|error| {
        // Its own text may quote what stands there.
        let place = error.location().map_or_else(String::new, |at| format!("line {}, ", at.line()));
        anyhow!("{place}it is not the YAML that Juju writes; see what `jujud` and its log say of it")
    })?;
    let is_controller = raw.controllercert.is_some()
        || raw.controllerkey.is_some()
        || raw.caprivatekey.is_some()
        || raw.sharedsecret.is_some();
    if !is_controller {
        return Ok(None);
    }
    let listed = raw.apiaddresses.unwrap_or_default();
    ensure!(
        listed.len() <= MAX_ADDRESSES,
        "apiaddresses lists {} addresses, and at most {MAX_ADDRESSES} are supported: name the controllers in the \
         configuration",
        listed.len()
    );
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
            format!("apiport is {port}, which is no port: set api.port in the configuration")
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
        secret: secret(SecretField::SharedSecret, raw.sharedsecret)
            .or_else(|| secret(SecretField::CaPrivateKey, raw.caprivatekey)),
    }))
}

impl AgentConf {
    /// The addresses at which other hosts can reach controllers, each once, IPv4 first and lowest first: the same
    /// list in the same order wherever the files agree.
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

/// Text that is wiped when dropped. (What the YAML parser itself held of it is not.)
struct Text(Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        text.map(|text| Self(Zeroizing::new(text))).map_err(|_may_quote| D::Error::custom("no text"))
    }
}

#[cfg(test)]
pub(crate) mod tests;
