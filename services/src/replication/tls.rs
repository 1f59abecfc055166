//! Owns: certificates: who a host is on the wire, and that it is.
//!
//! A host's certificate has the DNS name `node-N.CLUSTER`, an operator's `operator.CLUSTER`. What CLUSTER is, a process
//! takes from its own certificate: the others' have the same behind the dot. That is the name of the cluster, or
//! whatever else the authority of its hosts has chosen.
//!
//! What must hold: without certificates nothing leaves loopback; both ends prove who they are by a certificate that the
//! cluster's authority has signed; files that have changed are used from the next connection on.

use std::io::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tapestore_engine::cluster_admin::store_id;
use tapestore::lsn::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::door::{self, Begins};
use super::{is_loopback, local};
use crate::exit::{Failure, NO_INPUT, Outcome, USAGE};

/// What a client without certificates is told.
pub const WANTS_TLS: &str = "this host wants TLS: give --tls-cert, --tls-key and --tls-ca, for a host the certificate \
    node-N.CLUSTER, for an operator operator.CLUSTER; for a trial `tape cluster certs` makes them";
/// What a client with certificates is told by a host without.
const HAS_NO_TLS: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

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

/// The name in the certificate of host `node` of the cluster that certificates call `cluster`.
pub fn node_name(node: NodeId, cluster: &str) -> String {
    format!("node-{node}.{cluster}")
}

/// The name in the certificate of an operator.
pub fn operator_name(cluster: &str) -> String {
    format!("operator.{cluster}")
}

/// What `name` calls the cluster, if it is a name of a host or an operator.
fn cluster_in(name: &str) -> Option<&str> {
    let (who, cluster) = name.split_once('.')?;
    let who = who.to_ascii_lowercase();
    let is_host = who.strip_prefix("node-").is_some_and(|n| n.parse::<u64>().is_ok());
    ((is_host || who == "operator") && !cluster.is_empty()).then_some(cluster)
}

/// `error` and what it comes from: a transport error's own text says only that it is one.
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
    /// What this process's own certificate calls the cluster of identity `cluster`: the name that has that identity comes
    /// first, if there are several.
    ///
    /// # Errors
    /// The file cannot be read, or is for no host and no operator.
    pub fn clusters(&self, cluster: u128) -> Outcome<Vec<String>> {
        let bad = |why: String| Failure::new(USAGE, format!("{}: {why}", self.cert.display()));
        let pem = read(&self.cert)?;
        let own = CertificateDer::pem_slice_iter(&pem).next().ok_or_else(|| bad("there is no certificate in it".to_owned()))?;
        let names = names(&own.map_err(|e| bad(e.to_string()))?);
        let mut clusters: Vec<String> = names.iter().filter_map(|n| cluster_in(n)).map(str::to_owned).collect();
        clusters.sort_by_key(|c| store_id(c) != cluster);
        if clusters.is_empty() {
            let due = "a host's is for the DNS name node-N.CLUSTER, an operator's for operator.CLUSTER";
            return Err(bad(format!("the certificate is for {names:?}; {due}")));
        }
        Ok(clusters)
    }

    /// How to connect to host `node` of the cluster of identity `cluster`.
    ///
    /// # Errors
    /// A file cannot be read, or what is wrong with this process's own certificate.
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

    /// The files.
    pub fn files(&self) -> &Files {
        &self.files
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

    /// A proof of who is at the other end of a connection, with the certificates as they are now.
    pub fn proof(&mut self, stream: TcpStream) -> impl Future<Output = Result<TlsStream<TcpStream>, Error>> + use<> {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.config());
        async move {
            if let Some(stream) = only_tls(stream).await? {
                acceptor.accept(stream).await
            } else {
                Err(Error::other("it does not speak TLS"))
            }
        }
    }
}

/// Gives `stream` back if it begins with a handshake of TLS; who does not is told what is wanted.
async fn only_tls(mut stream: TcpStream) -> Result<Option<TcpStream>, Error> {
    match door::begins(&stream).await? {
        Begins::Tls => return Ok(Some(stream)),
        Begins::Local => local::refuse(&mut stream, WANTS_TLS).await?,
        Begins::Http2 => door::turn_away(&mut stream, WANTS_TLS).await?,
        Begins::Other => {}
    }
    door::linger(stream).await;
    Ok(None)
}

/// A proof of who is at the other end of a connection to a host without certificates, which is `host` now.
pub async fn plain_proof(mut stream: TcpStream, host: Option<(local::Host, PathBuf)>) -> Result<TcpStream, Error> {
    match door::begins(&stream).await? {
        Begins::Local => return local::admit(stream, host).await,
        Begins::Tls => stream.write_all(&HAS_NO_TLS).await?,
        Begins::Http2 => {
            door::turn_away(&mut stream, "without certificates this host hears tapestore's own processes alone").await?
        }
        Begins::Other => {}
    }
    door::linger(stream).await;
    Err(Error::other("it is no process of tapestore's, or uses TLS where this host does not"))
}
