//! Runs a stand-in Juju API server in the namespace it is started in; prints `ready PORT`, ends on SIGTERM.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use tests::juju::server::{self, Options};
use tokio::signal::unix::{SignalKind, signal};

/// A stand-in Juju API server.
#[derive(Parser)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own, not a state")]
struct Arguments {
    /// TCP port, 0 for any
    #[arg(long, default_value_t = 17070)]
    port: u16,
    /// Local address; [::] takes IPv4 too
    #[arg(long, default_value = "::")]
    bind: IpAddr,
    /// Name given in answers
    #[arg(long, default_value = "stand-in")]
    name: String,
    /// Raw TCP: keep connections open and echo
    #[arg(long)]
    plain: bool,
    /// Listen by MPTCP, as Go's servers do from Go 1.24 on
    #[arg(long)]
    mptcp: bool,
    /// Limit agents' logins as Juju does: a burst of 10, then one per 250 ms
    #[arg(long)]
    login_limit: bool,
    /// Keep this much memory for each connection until it closes, bytes
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    leak: usize,
    /// Directory of the TLS identity, shared with other servers; one of its own without
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Unix socket for commands, one JSON object a line
    #[arg(long)]
    control: Option<PathBuf>,
    /// Unix socket that answers GET /metrics with the connections open, as jujud's introspection does
    #[arg(long)]
    introspection: Option<PathBuf>,
    /// End when standard input does
    #[arg(long)]
    with_parent: bool,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let Arguments {
        port,
        bind,
        name,
        plain,
        mptcp,
        login_limit,
        leak,
        identity,
        control,
        introspection,
        with_parent,
    } = Arguments::parse();
    tests::support::limits::raise_open_files()?;
    if with_parent {
        tests::support::process::exit_with_parent();
    }
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let options =
        Options { bind, port, name, plain, mptcp, login_limit, leak, identity, control, introspection };
    let ready = |port| {
        let _ = writeln!(std::io::stdout(), "ready {port}");
    };
    tokio::select! {
        result = server::run(options, ready) => result,
        _ = terminate.recv() => Ok(()),
    }
}
