//! `balancer bypass`: the agent is told; if none answers, so are the programs themselves.

use std::time::Duration;

use anyhow::{Result, anyhow};

use super::{
    control::{self, Request},
    exit::{Code, of},
};
use crate::{balance::Bypass, config::Paths, datapath, host::clock::boot_s};

/// Orders a bypass of the balancer with `paths`, and returns the words for the operator.
pub async fn order(paths: &Paths, lasts: Option<Duration>, all: bool) -> Result<String> {
    // A bypass that is over at once would be none.
    let lasts = lasts.map(|lasts| lasts.max(Duration::from_secs(1)));
    let request = Request::Bypass { for_s: lasts.map(|lasts| lasts.as_secs()), all };
    let silent = match control::call(&paths.control, &request).await {
        Ok(answer) => return Ok(answer.as_str().unwrap_or_default().to_owned()),
        Err(error) if of(&error) == Code::NoAgent => error,
        Err(error) => return Err(error),
    };
    let bypass = Bypass::new(boot_s(), lasts, all);
    if datapath::change_settings(&paths.pins, |settings| bypass.apply(settings))?.is_none() {
        return Err(anyhow!(
            "{silent:#}; and no data path is there, so each client is served where it dials"
        ));
    }
    Ok(format!(
        "{silent:#}\nthe programs are bypassed all the same: each new client is served where it dials; an agent that \
         comes back keeps to it"
    ))
}
