//! `balancer uninstall`: the others are told, then the data path is removed.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Result, bail};
use log::warn;

use crate::{
    cluster::farewell::{self, PATIENCE},
    config::{Config, Paths},
    datapath,
    host::{clock, interfaces},
    operator::exit,
};

/// Relayed handshakes that were under way when the others heard are over after this.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// Removes the data path, with the configuration at `path` and its `paths`. Returns whether there was anything.
pub async fn uninstall(path: &Path, paths: &Paths) -> Result<bool> {
    exit::need_root("uninstall")?;
    if std::os::unix::net::UnixStream::connect(&paths.control).is_ok() {
        bail!(
            "the agent is running and would attach the data path again; stop it first (systemctl stop balancer)"
        );
    }
    let told = match datapath::serve_here(&paths.pins) {
        Ok(None) => Ok(()),
        Ok(Some((slots, own))) => tell(path, &farewell::to_tell(&slots, own, clock::boot_ns())).await,
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        warn!("the other controllers cannot be told, and find out by themselves: {error:#}");
        tokio::time::sleep(PATIENCE).await;
    }
    datapath::uninstall(&paths.pins, &interfaces::names()?)
}

async fn tell(path: &Path, to_tell: &BTreeSet<u64>) -> Result<()> {
    if to_tell.is_empty() {
        return Ok(());
    }
    let config = Config::load(path, &interfaces::addresses()?)?;
    let silent = farewell::say(&config, to_tell).await?;
    if !silent.is_empty() {
        warn!("no answer from {} within {} s", silent.join(", "), PATIENCE.as_secs());
    }
    tokio::time::sleep(UNDER_WAY).await;
    Ok(())
}
