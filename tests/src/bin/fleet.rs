//! Runs a client fleet in the namespace it is started in; commands and events are JSON lines (`tests::juju::fleet`).

use anyhow::Result;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    tests::support::limits::raise_open_files()?;
    tests::juju::fleet::run::run().await?;
    // Clients have no more to say; their sockets close with the process.
    std::process::exit(0)
}
