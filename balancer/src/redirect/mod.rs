//! `balancer redirect`: sends clients that follow redirects of Juju's API to the controllers that can take them.
//!
//! A process of its own without privileges. The agent tells it the controllers' states (`state`); `choice` picks by the
//! balancer's own rule; `rpc` answers a client, in the `session` of its connection; `bounds` keeps strangers from
//! taking all of it. The certificate and its key come from Juju's `agent.conf` (`handed`).

mod bounds;
mod choice;
mod handed;
pub mod rpc;
mod session;
mod state;
mod view;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use log::info;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

pub use self::view::{Known, View};
use self::{
    bounds::Bounds,
    choice::Choice,
    handed::Handed,
    session::{Shared, serve},
};
use crate::{host::notify, operator::repeated::warn_repeated};

/// Connections that wait for the redirector.
const BACKLOG: i32 = 1_024;

/// `balancer redirect --hand-over FILE`: writes the redirector's credential into a file of root's.
pub fn hand_over(config: &Path, file: &Path) -> Result<()> {
    Handed::collect(config)?.write(file)
}

/// `balancer redirect`, until SIGTERM or SIGINT. `handed`: the credential is on standard input.
pub fn main(config: &Path, handed: bool) -> Result<()> {
    let handed = if handed { Handed::from_stdin()? } else { Handed::collect(config)? };
    let tls = TlsAcceptor::from(handed.tls()?);
    let shared =
        Arc::new(Shared { choice: Mutex::new(Choice::default()), authority: handed.authority.clone() });
    // One thread: even under attack the redirector takes one processor, and leaves the others to the API server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the runtime")?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let listener = listen(handed.listen)?;
        tokio::spawn(state::follow(handed.view, Arc::clone(&shared)));
        info!("ready: redirecting clients on {}", handed.listen);
        notify::ready(&format!("redirecting clients on {}", handed.listen));
        tokio::select! {
            () = accept(listener, tls, shared) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        notify::stopping();
        Ok(())
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let open = || {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().with_context(|| {
        format!("failed to listen on {address}; end what is there, or choose another redirect.listen")
    })
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let bounds = Arc::new(Bounds::default());
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (tls, shared, mut place) = (tls.clone(), Arc::clone(&shared), bounds.admit(peer.ip()));
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(stream, tls, &shared) => {}
                        () = place.is_cut() => {}
                    }
                });
            }
            Err(error) => {
                warn_repeated!("accept", "failed to accept a client: {error}");
                // Most likely there are no file descriptors left.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
