//! Runs a client fleet in the namespace it is started in; commands and events are JSON lines (`tests::fleet`).

use anyhow::Result;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    tests::limits::raise_open_files()?;
    tests::fleet::run::run().await?;
    // Clients have no more to say; their sockets close with the process.
    std::process::exit(0)
}
