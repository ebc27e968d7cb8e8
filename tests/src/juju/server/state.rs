//! The state of a stand-in server: connections, counts, and the settings of a test.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::login::LoginBucket;
use super::{Command, Server, Stats};
use crate::juju::rpc::{self, Peer};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Endpoint {
    Handshake,
    Api,
    Logsink,
    Plain,
    Other,
}

struct Connection {
    peer: SocketAddr,
    local: SocketAddr,
    endpoint: Endpoint,
    close: Option<oneshot::Sender<()>>,
}

impl Connection {
    /// Whether it comes from another host.
    fn is_client(&self) -> bool {
        self.peer.ip() != self.local.ip()
    }
}

#[derive(Default)]
pub(super) struct State {
    pub healthy: bool,
    /// Without the open connections.
    pub stats: Stats,
    pub login: Option<LoginBucket>,
    pub addresses: Vec<SocketAddr>,
    open: HashMap<u64, Connection>,
    grown: Vec<Vec<u8>>,
}

/// Memory that is really there, because it was written to.
fn touched(bytes: usize) -> Vec<u8> {
    vec![0xa5; bytes]
}

impl State {
    pub fn new(login_limit: bool) -> Self {
        let mut state = Self { healthy: true, ..Self::default() };
        state.limit_logins(login_limit);
        state
    }

    fn limit_logins(&mut self, on: bool) {
        self.login = on.then(|| LoginBucket::new(Instant::now()));
    }

    pub fn models(&self) -> Value {
        let model = |name, uuid| json!({ "result": { "name": name, "uuid": uuid, "type": "iaas" } });
        let mut models = vec![model("agents", rpc::MODEL)];
        if !self.addresses.is_empty() {
            models.push(model("controller", rpc::CONTROLLER_MODEL));
        }
        json!({ "results": models })
    }

    fn at(&self, endpoint: Endpoint) -> u64 {
        self.open.values().filter(|one| one.endpoint == endpoint).count() as u64
    }

    fn stats(&self) -> Stats {
        Stats {
            open: self.open.values().filter(|one| one.is_client()).count() as u64,
            api: self.at(Endpoint::Api),
            logsink: self.at(Endpoint::Logsink),
            ..self.stats
        }
    }

    pub fn command(&mut self, command: Command) -> Value {
        match command {
            Command::Stats => return json!(self.stats()),
            Command::Peers => return self.open.values().map(|one| json!([one.peer, one.local])).collect(),
            Command::Health { ok } => self.healthy = ok,
            Command::LimitLogins { on } => self.limit_logins(on),
            Command::Grow { bytes } => self.grown.push(touched(bytes)),
            Command::Addresses { addresses } => self.addresses = addresses,
            Command::Close { count } => {
                let clients = self.open.values_mut().filter(|one| one.is_client());
                let closers = clients.filter_map(|one| one.close.take()).take(count);
                // One that ended this instant has dropped its receiver, and is not counted.
                return json!(closers.filter_map(|close| close.send(()).ok()).count());
            }
        }
        Value::Null
    }

    pub fn metrics(&self) -> String {
        let mut page = String::from("# TYPE juju_apiserver_connections gauge\n");
        let api = self.at(Endpoint::Api) + self.at(Endpoint::Plain);
        for (endpoint, count) in [("api", api), ("logsink", self.at(Endpoint::Logsink))] {
            let _infallible = writeln!(page, "juju_apiserver_connections{{endpoint=\"{endpoint}\"}} {count}");
        }
        page
    }
}

/// A connection in the table, removed when its task ends, however it ends.
pub(super) struct Entry {
    pub server: Arc<Server>,
    pub peer: Peer,
    id: u64,
    _leak: Vec<u8>,
}

impl Entry {
    /// Returns, too, the receiver that tells to close it.
    pub fn new(
        server: &Arc<Server>,
        id: u64,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> (Self, oneshot::Receiver<()>) {
        let (close, closing) = oneshot::channel();
        let connection = Connection { peer, local, endpoint: Endpoint::Handshake, close: Some(close) };
        server.state(|state| state.open.insert(id, connection));
        let peer = Peer { server: server.name.clone(), peer, local };
        (Self { server: Arc::clone(server), peer, id, _leak: touched(server.leak) }, closing)
    }

    pub fn is(&self, endpoint: Endpoint) {
        self.server.state(|state| {
            if let Some(connection) = state.open.get_mut(&self.id) {
                connection.endpoint = endpoint;
            }
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.server.state(|state| state.open.remove(&self.id));
    }
}
