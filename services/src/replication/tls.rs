//! Owns: certificates and authentication with them.
//!
//! A host's certificate has the DNS name `node-N.CLUSTER`, an operator's `operator.CLUSTER`. A process takes CLUSTER from its
//! own certificate; all certificates of a cluster share it. It is the name of the cluster, or another name that the
//! authority chose.
//!
//! What must hold: without certificates nothing leaves loopback; both ends authenticate with a certificate that the
//! cluster's authority signed; changed files are used from the next connection on.

use std::io::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tapestore::lsn::NodeId;
use tapestore_engine::cluster_admin::store_id;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::acceptor::{self, Protocol};
use super::{is_loopback, local};
use crate::exit::{Failure, NO_INPUT, Outcome, USAGE};

/// Refusal of a client without certificates.
pub const WANTS_TLS: &str = "this host requires TLS: give --tls-cert, --tls-key and --tls-ca, for a host the certificate \
    node-N.CLUSTER, for an operator operator.CLUSTER; for a trial `tape cluster certs` makes them";
/// Refusal of a client with certificates by a host without: the TLS alert handshake_failure.
const HAS_NO_TLS: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Files {
    /// This host's certificate.
    pub cert: PathBuf,
    /// Key of the certificate.
    pub key: PathBuf,
    /// Certificate of the authority.
    pub ca: PathBuf,
}

/// The same on a command line: all three or none.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Flags {
    /// Certificate of this host, or of an operator who sends a request, PEM
    #[arg(long, requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long)]
    tls_key: Option<PathBuf>,
    /// Authority that signs the certificates of all hosts, PEM
    #[arg(long)]
    tls_ca: Option<PathBuf>,
}

impl Flags {
    /// The files, if they are given.
    pub fn files(&self) -> Option<Files> {
        let Flags { tls_cert, tls_key, tls_ca } = self.clone();
        Some(Files { cert: tls_cert?, key: tls_key?, ca: tls_ca? })
    }
}

/// The name in the certificate of host `node`; `cluster` is the part after the dot.
pub fn node_name(node: NodeId, cluster: &str) -> String {
    format!("node-{node}.{cluster}")
}

/// The name in the certificate of an operator.
pub fn operator_name(cluster: &str) -> String {
    format!("operator.{cluster}")
}

/// The part after the dot of `name`, if it is a name of a host or an operator.
fn cluster_in(name: &str) -> Option<&str> {
    let (who, cluster) = name.split_once('.')?;
    let who = who.to_ascii_lowercase();
    let is_host = who.strip_prefix("node-").is_some_and(|n| n.parse::<u64>().is_ok());
    ((is_host || who == "operator") && !cluster.is_empty()).then_some(cluster)
}

/// `error` and its sources; the text of a transport error alone has no reason.
pub fn why(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if texts.iter().all(|t| !t.contains(&text)) {
            texts.push(text);
        }
        source = error.source();
    }
    texts.retain(|t| t != "transport error");
    texts.join(": ")
}

/// Checks that `address` may be used: without TLS only a loopback address.
///
/// # Errors
/// [`USAGE`], with the options to give.
pub fn check_plain(address: &str, uses_tls: bool) -> Outcome {
    if uses_tls || is_loopback(address) {
        return Ok(());
    }
    let reason = format!(
        "{address} is not a loopback address, and without TLS records would cross the network unencrypted: give --tls-cert, \
         --tls-key and --tls-ca (for a trial, `tape cluster certs` creates them), or use 127.0.0.1"
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
    /// When the certificate in `path` ends, seconds since 1970; of several, the first that ends.
    pub fn end(path: &Path) -> Option<u64> {
        let pem = std::fs::read(path).ok()?;
        let ends = CertificateDer::pem_slice_iter(&pem).filter_map(|certificate| {
            let certificate = certificate.ok()?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
            u64::try_from(parsed.validity().not_after.timestamp()).ok()
        });
        ends.min()
    }

    /// The cluster names in this process's own certificate. If there are several, the one of the identity `cluster` comes
    /// first.
    ///
    /// # Errors
    /// The file is unreadable, or has no name of a host or an operator.
    pub fn clusters(&self, cluster: u128) -> Outcome<Vec<String>> {
        let bad = |why: String| Failure::new(USAGE, format!("{}: {why}", self.cert.display()));
        let pem = read(&self.cert)?;
        let own = CertificateDer::pem_slice_iter(&pem).next().ok_or_else(|| bad("the file has no certificate".to_owned()))?;
        let names = names(&own.map_err(|e| bad(e.to_string()))?);
        let mut clusters: Vec<String> = names.iter().filter_map(|n| cluster_in(n)).map(str::to_owned).collect();
        clusters.sort_by_key(|c| store_id(c) != cluster);
        if clusters.is_empty() {
            let due = "a host needs the DNS name node-N.CLUSTER, an operator operator.CLUSTER";
            return Err(bad(format!("the certificate is for {names:?}; {due}")));
        }
        Ok(clusters)
    }

    /// TLS settings for a connection to host `node` of the cluster with the identity `cluster`.
    ///
    /// # Errors
    /// A file is unreadable, or this process's own certificate is wrong.
    pub fn client(&self, node: NodeId, cluster: u128) -> Outcome<ClientTlsConfig> {
        let clusters = self.clusters(cluster)?;
        let name = node_name(node, clusters.first().map_or("", String::as_str));
        let identity = Identity::from_pem(read(&self.cert)?, read(&self.key)?);
        let ca = Certificate::from_pem(read(&self.ca)?);
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

/// Accepts TLS connections with the current certificates.
pub struct Acceptor {
    files: Files,
    as_of: [Option<SystemTime>; 3],
    config: Arc<ServerConfig>,
}

impl Acceptor {
    /// Reads the certificates in `files`.
    ///
    /// # Errors
    /// A file is unreadable or malformed.
    pub fn new(files: Files) -> Outcome<Acceptor> {
        let as_of = files.changed();
        let config = Arc::new(files.server()?);
        Ok(Acceptor { files, as_of, config })
    }

    /// The certificate files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    fn config(&mut self) -> Arc<ServerConfig> {
        let now = self.files.changed();
        if now != self.as_of {
            self.as_of = now;
            match self.files.server() {
                Ok(config) => {
                    tracing::info!(name: "tls.reloaded", cert = %self.files.cert.display(), "loaded changed certificates");
                    self.config = Arc::new(config);
                }
                Err(error) => tracing::error!(
                    name: "tls.reload_failed", %error,
                    "cannot load changed certificates; the earlier ones stay in use"
                ),
            }
        }
        self.config.clone()
    }

    /// Authenticates the other end of `stream` with the current certificates.
    pub fn accept(&mut self, stream: TcpStream) -> impl Future<Output = Result<TlsStream<TcpStream>, Error>> + use<> {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.config());
        async move {
            if let Some(stream) = only_tls(stream).await? {
                acceptor.accept(stream).await
            } else {
                Err(Error::other("the client does not use TLS"))
            }
        }
    }
}

/// Returns `stream` if it begins with a TLS handshake; refuses it otherwise.
async fn only_tls(mut stream: TcpStream) -> Result<Option<TcpStream>, Error> {
    match acceptor::protocol(&stream).await? {
        Protocol::Tls => return Ok(Some(stream)),
        Protocol::Local => local::refuse(&mut stream, WANTS_TLS).await?,
        Protocol::Http2 => acceptor::refuse_http2(&mut stream, WANTS_TLS).await?,
        Protocol::Other => {}
    }
    acceptor::linger(stream).await;
    Ok(None)
}

/// Authenticates a client at a host without certificates, which is `host`.
pub async fn accept_local(mut stream: TcpStream, host: Option<(local::Host, PathBuf)>) -> Result<TcpStream, Error> {
    match acceptor::protocol(&stream).await? {
        Protocol::Local => return local::admit(stream, host).await,
        Protocol::Tls => stream.write_all(&HAS_NO_TLS).await?,
        Protocol::Http2 => {
            acceptor::refuse_http2(&mut stream, "without certificates this host accepts only processes of tapestore").await?
        }
        Protocol::Other => {}
    }
    acceptor::linger(stream).await;
    Err(Error::other("the client is not a tapestore process, or uses TLS while this host does not"))
}
