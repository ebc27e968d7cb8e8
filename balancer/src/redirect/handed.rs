//! The credential: all that the redirector needs and only root can read. A unit of root's collects it from the configuration
//! and Juju's `agent.conf` into a file, and systemd opens this file for the redirector (`StandardInput=`). A credential of
//! `LoadCredential=` needs ACLs on tmpfs, which containers may lack.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::NoServerSessionStorage,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    config::Config,
    juju::agent_conf::{self, Identity},
};

/// Longest credential, bytes.
const LONGEST: u64 = 1 << 20;

#[derive(Deserialize, Serialize)]
pub(super) struct Handed {
    pub(super) listen: SocketAddr,
    /// The agent's view socket.
    pub(super) view: PathBuf,
    /// The authority that signs the controllers' certificates, PEM.
    pub(super) authority: String,
    /// PEM.
    certificate: String,
    key: Zeroizing<String>,
}

impl Handed {
    /// As it is handed over on standard input.
    pub(super) fn from_stdin() -> Result<Self> {
        let mut text = Zeroizing::new(Vec::new());
        io::stdin().take(LONGEST).read_to_end(&mut text).context("failed to read the credential")?;
        // An error of serde_json quotes nothing but its own words, and a place.
        serde_json::from_slice(&text).context("the credential on standard input is unusable")
    }

    pub(super) fn collect(config: &Path) -> Result<Self> {
        let (paths, listen) = Config::load_redirect(config)?;
        let listen = listen.context(
            "redirect.listen is not set: nothing is redirected; set it to an address such as \"[::]:17079\"",
        )?;
        let conf = agent_conf::find(&paths.juju)?.with_context(|| {
            format!(
                "no agent.conf of a controller is below {}: only Juju's controllers redirect",
                paths.juju.display()
            )
        })?;
        let Identity { certificate, key, authority } = agent_conf::identity(&conf.path)?;
        Ok(Self { listen, view: paths.view, authority, certificate, key })
    }

    /// Writes it into a new file at `path`, for root alone.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let failed = || format!("failed to write {}", path.display());
        let text = Zeroizing::new(serde_json::to_vec(self).with_context(failed)?);
        let new = path.with_extension("new");
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(failed);
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).with_context(failed)?;
        file.write_all(&text).with_context(failed)?;
        fs::rename(&new, path).with_context(failed)
    }

    pub(super) fn tls(&self) -> Result<Arc<ServerConfig>> {
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect();
        let certificates = certificates.context("controllercert in Juju's agent.conf is no certificate")?;
        // Its text may hold a part of the key.
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|_may_quote| anyhow::anyhow!("controllerkey in Juju's agent.conf is no private key"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("failed to choose TLS versions")?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .context("controllercert and controllerkey in Juju's agent.conf do not fit")?;
        // No client comes back.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}
