//! A session as Juju's clients open it: TLS 1.3, a websocket, `Login` and its answer. Both ends, as far as one read or write
//! after the other gets them.

use std::io::ErrorKind;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use tokio_tungstenite::tungstenite::handshake::MidHandshake;
use tokio_tungstenite::tungstenite::handshake::client::ClientHandshake;
use tokio_tungstenite::tungstenite::handshake::server::{NoCallback, ServerHandshake};
use tokio_tungstenite::tungstenite::{Error, HandshakeError, Message, WebSocket, accept_with_config, client};

use crate::juju::rpc::small_buffers;
use crate::juju::tls::SERVER_NAME;

const LOGIN: &str = r#"{"request-id":1,"type":"Admin","version":3,"request":"Login","params":{"auth-tag":"user-admin","credentials":"a-password-of-usual-length","client-version":"3.6.8"}}"#;
const ANSWER: &str = r#"{"request-id":1,"response":{"controller-tag":"controller-5a2c6f3e-1f0b-4c1a-8f57-0e4f2b3c9d11","server-version":"3.6.8","user-info":{"display-name":"admin","identity":"user-admin","controller-access":"superuser"}}}"#;

type ToServer = StreamOwned<ClientConnection, TcpStream>;
type ToClient = StreamOwned<ServerConnection, TcpStream>;

/// The state after a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// It goes on at the socket's next event.
    Waits,
    Over,
}

/// The client's end of a session.
pub struct Client {
    state: Option<ClientState>,
}

enum ClientState {
    Upgrade(MidHandshake<ClientHandshake<ToServer>>),
    Asked(WebSocket<ToServer>),
    Answered(WebSocket<ToServer>),
}

impl Client {
    /// Begins a session on a connection that may not be open yet.
    pub fn new(stream: TcpStream, config: &Arc<ClientConfig>) -> Result<Self> {
        let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(SERVER_NAME)?)?;
        let url = format!("wss://{SERVER_NAME}/api");
        match client::client_with_config(url, StreamOwned::new(tls, stream), Some(small_buffers())) {
            Err(HandshakeError::Interrupted(upgrade)) => {
                Ok(Self { state: Some(ClientState::Upgrade(upgrade)) })
            }
            Err(HandshakeError::Failure(error)) => Err(error.into()),
            Ok(_) => bail!("a server has answered before it was asked"),
        }
    }

    /// Goes on; over when the server has answered and closed.
    pub fn advance(&mut self) -> Result<Step> {
        loop {
            let state = match self.state.take().context("the session has failed")? {
                ClientState::Upgrade(upgrade) => match upgrade.handshake() {
                    Ok((mut socket, _)) => {
                        socket.send(Message::text(LOGIN))?;
                        ClientState::Asked(socket)
                    }
                    Err(HandshakeError::Interrupted(upgrade)) => {
                        self.state = Some(ClientState::Upgrade(upgrade));
                        return Ok(Step::Waits);
                    }
                    Err(HandshakeError::Failure(error)) => return Err(error.into()),
                },
                ClientState::Asked(mut socket) => {
                    let Some(answer) = read(&mut socket)? else {
                        self.state = Some(ClientState::Asked(socket));
                        return Ok(Step::Waits);
                    };
                    ensure!(answer == ANSWER, "the server said {answer}");
                    ClientState::Answered(socket)
                }
                ClientState::Answered(mut socket) => match read(&mut socket) {
                    Ok(None) => {
                        self.state = Some(ClientState::Answered(socket));
                        return Ok(Step::Waits);
                    }
                    Ok(Some(more)) => bail!("the server also said {more}"),
                    Err(_) => return Ok(Step::Over),
                },
            };
            self.state = Some(state);
        }
    }
}

/// The server's end of a session.
pub struct Server {
    state: Option<ServerState>,
}

enum ServerState {
    Upgrade(MidHandshake<ServerHandshake<ToClient, NoCallback>>),
    Open(WebSocket<ToClient>),
}

impl Server {
    /// Begins a session; `first` are bytes that have been read.
    pub fn new(stream: TcpStream, config: &Arc<ServerConfig>, mut first: &[u8]) -> Result<Self> {
        let mut tls = ServerConnection::new(Arc::clone(config))?;
        while !first.is_empty() {
            tls.read_tls(&mut first)?;
        }
        tls.process_new_packets()?;
        match accept_with_config(StreamOwned::new(tls, stream), Some(small_buffers())) {
            Err(HandshakeError::Interrupted(upgrade)) => {
                Ok(Self { state: Some(ServerState::Upgrade(upgrade)) })
            }
            Err(HandshakeError::Failure(error)) => Err(error.into()),
            Ok(_) => bail!("a client has asked before the handshake"),
        }
    }

    /// Goes on; over when the client is answered.
    pub fn advance(&mut self) -> Result<Step> {
        loop {
            let state = match self.state.take().context("the session has failed")? {
                ServerState::Upgrade(upgrade) => match upgrade.handshake() {
                    Ok(socket) => ServerState::Open(socket),
                    Err(HandshakeError::Interrupted(upgrade)) => {
                        self.state = Some(ServerState::Upgrade(upgrade));
                        return Ok(Step::Waits);
                    }
                    Err(HandshakeError::Failure(error)) => return Err(error.into()),
                },
                ServerState::Open(mut socket) => {
                    if read(&mut socket)?.is_none() {
                        self.state = Some(ServerState::Open(socket));
                        return Ok(Step::Waits);
                    }
                    socket.send(Message::text(ANSWER))?;
                    return Ok(Step::Over);
                }
            };
            self.state = Some(state);
        }
    }
}

/// The next message; `None` if there is none yet.
fn read<S: std::io::Read + std::io::Write>(socket: &mut WebSocket<S>) -> Result<Option<String>> {
    match socket.read() {
        Ok(message) => Ok(Some(message.into_text()?.to_string())),
        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}
