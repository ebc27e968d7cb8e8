//! Runs a stand-in Juju API server in the namespace it is started in; its argument is `tests::juju::server::Options` as
//! JSON.

use anyhow::{Context, Result};
use tests::juju::server::{self, Options};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let options = std::env::args().nth(1).context("usage: stand-in-server OPTIONS")?;
    let options: Options = serde_json::from_str(&options).with_context(|| format!("options: {options}"))?;
    tests::support::limits::raise_open_files()?;
    server::run(options).await
}
