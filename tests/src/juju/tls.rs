//! TLS ends of the fixtures: `juju-apiserver`, signed by its cluster's own authority, and a client that trusts everybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

use crate::support::files::{read, write_private};

/// The name in every Juju controller's certificate, and the SNI of every client.
pub const SERVER_NAME: &str = "juju-apiserver";

/// The TLS identity that the controllers of a cluster share, as Juju's do: an authority, and the certificate that it
/// signed. Each is PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The authority's certificate, which clients are given.
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl Identity {
    pub fn make() -> Result<Self> {
        let make = || {
            let mut authority = CertificateParams::default();
            authority.distinguished_name.push(DnType::CommonName, "juju-ca");
            authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
            let mut server = CertificateParams::new([SERVER_NAME.to_owned(), "localhost".to_owned()])?;
            server.distinguished_name.push(DnType::CommonName, SERVER_NAME);
            server.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let certificate = server.signed_by(&key, &authority)?;
            let (authority, certificate) = (authority.pem(), certificate.pem());
            Ok::<_, rcgen::Error>(Self { authority, certificate, key: key.serialize_pem() })
        };
        make().context("failed to make a certificate")
    }

    /// The one in `directory`, made there at the first call.
    pub fn of(directory: &Path) -> Result<Self> {
        let [authority, certificate, key] = Self::files(directory);
        if !authority.exists() {
            let made = Self::make()?;
            for (path, text) in
                [(&certificate, &made.certificate), (&key, &made.key), (&authority, &made.authority)]
            {
                write_private(path, text)?;
            }
        }
        Ok(Self { authority: read(&authority)?, certificate: read(&certificate)?, key: read(&key)? })
    }

    pub fn authority_file(directory: &Path) -> PathBuf {
        let [authority, ..] = Self::files(directory);
        authority
    }

    fn files(directory: &Path) -> [PathBuf; 3] {
        ["ca.pem", "server.pem", "server.key"].map(|name| directory.join(name))
    }
}

/// A server with this identity. No session tickets: clients of the fixtures never resume.
pub fn server(identity: &Identity) -> Result<Arc<ServerConfig>> {
    let certificate =
        CertificateDer::from_pem_slice(identity.certificate.as_bytes()).context("no certificate")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("no key")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("failed to choose TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .context("failed to use the certificate")?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that accepts every certificate: the check costs more CPU than the rest of a stand-in session.
pub fn client() -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("failed to choose TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

type Valid = Result<HandshakeSignatureValid, rustls::Error>;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Valid {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Valid {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
