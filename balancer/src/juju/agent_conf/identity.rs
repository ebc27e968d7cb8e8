//! The controller's TLS identity in its `agent.conf`: for the redirector alone.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Text, read_text, yaml};

/// Each is PEM.
pub struct Identity {
    pub certificate: String,
    pub key: Zeroizing<String>,
    /// The authority that signs all controllers' certificates.
    pub authority: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    controllercert: Option<String>,
    controllerkey: Option<Text>,
    cacert: Option<String>,
}

/// The identity in the `agent.conf` at `path`.
pub fn identity(path: &Path) -> Result<Identity> {
    let raw: Raw = yaml(&read_text(path)?).with_context(|| format!("{} is unusable", path.display()))?;
    let lacks = |field| format!("{} has no {field}: it is not a controller's", path.display());
    Ok(Identity {
        certificate: raw.controllercert.with_context(|| lacks("controllercert"))?,
        key: raw.controllerkey.with_context(|| lacks("controllerkey"))?.0,
        authority: raw.cacert.with_context(|| lacks("cacert"))?,
    })
}
