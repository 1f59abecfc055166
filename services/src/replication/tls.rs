//! Owns: certificates: who a host is on the wire, and that it is.
//!
//! What must hold: without certificates nothing leaves loopback; both ends prove who they are by a certificate that the
//! cluster's authority has signed; files that have changed are used from the next connection on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tapestore::lsn::NodeId;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::is_loopback;
use crate::exit::{Failure, NO_INPUT, Outcome, USAGE};

/// Handshakes at once.
const HANDSHAKES_MAX: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Files {
    /// This host's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority.
    pub ca: PathBuf,
}

/// The name in the certificate of host `node` of the cluster `cluster`.
pub fn node_name(node: NodeId, cluster: u128) -> String {
    format!("node-{node}.{cluster:032x}")
}

/// The name in the certificate of an operator.
pub fn operator_name(cluster: u128) -> String {
    format!("operator.{cluster:032x}")
}

/// Whether `address` may be used: without TLS only loopback may.
///
/// # Errors
/// What to do.
pub fn check_plain(address: &str, uses_tls: bool) -> Outcome {
    if uses_tls || is_loopback(address) {
        return Ok(());
    }
    let reason = format!(
        "{address} is no loopback address, and records would cross the network in the clear: give --tls-cert, --tls-key and \
         --tls-ca (for a trial `tape cluster certs` makes them), or use 127.0.0.1"
    );
    Err(Failure::new(USAGE, reason))
}

/// The DNS names in a certificate.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|n| match n {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    dns.collect()
}

fn read(path: &PathBuf) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|e| Failure::new(NO_INPUT, format!("{}: {e}", path.display())))
}

impl Files {
    /// How to connect to the host whose certificate says `name`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn client(&self, name: &str) -> Result<ClientTlsConfig, std::io::Error> {
        let identity = Identity::from_pem(std::fs::read(&self.cert)?, std::fs::read(&self.key)?);
        let ca = Certificate::from_pem(std::fs::read(&self.ca)?);
        Ok(ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(name))
    }

    fn server(&self) -> Outcome<ServerConfig> {
        let bad = |path: &PathBuf, e: &dyn std::fmt::Display| Failure::new(USAGE, format!("{}: {e}", path.display()));
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(&read(&self.ca)?) {
            let cert = cert.map_err(|e| bad(&self.ca, &e))?;
            roots.add(cert).map_err(|e| bad(&self.ca, &e))?;
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let verifier = verifier.map_err(|e| bad(&self.ca, &e))?;
        let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&self.cert)?).collect();
        let certs = certs.map_err(|e| bad(&self.cert, &e))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|e| bad(&self.key, &e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&self.cert, &e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certs, key)
            .map_err(|e| bad(&self.cert, &e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn changed(&self) -> [Option<SystemTime>; 3] {
        [&self.cert, &self.key, &self.ca].map(|f| f.metadata().and_then(|m| m.modified()).ok())
    }
}

/// Accepts connections with the certificates as they are now.
pub struct Acceptor {
    files: Files,
    as_of: [Option<SystemTime>; 3],
    config: Arc<ServerConfig>,
}

impl Acceptor {
    /// With the certificates in `files`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(files: Files) -> Outcome<Acceptor> {
        let as_of = files.changed();
        let config = Arc::new(files.server()?);
        Ok(Acceptor { files, as_of, config })
    }

    fn config(&mut self) -> Arc<ServerConfig> {
        let now = self.files.changed();
        if now != self.as_of {
            self.as_of = now;
            match self.files.server() {
                Ok(config) => {
                    tracing::info!(cert = %self.files.cert.display(), "certificates have changed and are used from now on");
                    self.config = Arc::new(config);
                }
                Err(error) => tracing::error!(%error, "changed certificates are not used"),
            }
        }
        self.config.clone()
    }

    /// The connections that have proved who they are. A handshake that takes long keeps nobody waiting.
    pub fn accept(
        mut self,
        mut connections: TcpListenerStream,
    ) -> impl Stream<Item = Result<TlsStream<TcpStream>, std::io::Error>> {
        let (proved, out) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(async move {
            let room = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
            while let Some(connection) = connections.next().await {
                let Ok(connection) = connection else { continue };
                let Ok(permit) = room.clone().acquire_owned().await else { return };
                connection.set_nodelay(true).ok();
                let acceptor = tokio_rustls::TlsAcceptor::from(self.config());
                let proved = proved.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(connection)).await {
                        Ok(Ok(stream)) => drop(proved.send(Ok(stream)).await),
                        Ok(Err(error)) => tracing::warn!(%error, "a connection without a good certificate is refused"),
                        Err(_) => tracing::warn!("a connection that does not come to an end with its handshake is refused"),
                    }
                });
            }
        });
        ReceiverStream::new(out)
    }
}
