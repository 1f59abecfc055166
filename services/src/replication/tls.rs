//! Owns: certificates and authentication with them.
//!
//! A host's certificate has the DNS name `node-N.CLUSTER`, an operator's `operator.CLUSTER`. A process takes CLUSTER from its
//! own certificate; all certificates of a cluster share it. It is the name of the cluster, or another name that the
//! authority chose.
//!
//! What must hold: without certificates nothing leaves loopback; both ends authenticate with a certificate that the
//! cluster's authority signed and has not revoked, at each connection; changed files are used from the next connection on.

use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapestore::lsn::NodeId;
use tapestore_engine::cluster_admin::store_id;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore, ServerConfig};

use super::acceptor::{self, Protocol};
use super::crl::{Authorities, ListError, Lists};
use super::{is_loopback, local};
use crate::exit::{Failure, NO_INPUT, Outcome, USAGE};

/// Refusal of a client without certificates.
pub const WANTS_TLS: &str = "this host requires TLS: give --tls-cert, --tls-key and --tls-ca, for a host the certificate \
    node-N.CLUSTER, for an operator operator.CLUSTER; for a trial `tape cluster certs` makes them";
/// Refusal of a client with certificates by a host without: the TLS alert handshake_failure.
const HAS_NO_TLS: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

/// The protocol in the TLS connection.
pub(super) const H2: &[u8] = b"h2";

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
    /// Lists of the certificates that the authority has revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
}

/// The same on a command line: the first three or none.
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
    /// Certificates that the authority has revoked: one or several revocation lists, PEM
    #[arg(long, requires = "tls_cert")]
    tls_crl: Option<PathBuf>,
}

impl Flags {
    /// The files, if they are given.
    pub fn files(&self) -> Option<Files> {
        let Flags { tls_cert, tls_key, tls_ca, tls_crl } = self.clone();
        Some(Files { cert: tls_cert?, key: tls_key?, ca: tls_ca?, crl: tls_crl })
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

fn malformed(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(USAGE, format!("{}: {why}", path.display()))
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Failure {
        let code = if matches!(error, ListError::Read { .. }) { NO_INPUT } else { USAGE };
        Failure::new(code, error.to_string())
    }
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

    /// The certificates in the file `path`.
    fn certificates(path: &PathBuf) -> Outcome<Vec<CertificateDer<'static>>> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
        all.map_err(|e| malformed(path, &e))
    }

    /// Reads the files and makes TLS settings of them.
    ///
    /// # Errors
    /// A file is unreadable or malformed, or they do not belong together.
    pub fn settings(&self) -> Outcome<Settings> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (authorities, own) = (Files::certificates(&self.ca)?, Files::certificates(&self.cert)?);
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|e| malformed(&self.key, &e))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(|e| malformed(&self.ca, &e))?;
        }
        let roots = Arc::new(roots);
        let lists = self.lists(&authorities, &own)?;
        let ders = lists.as_ref().map(Lists::ders).unwrap_or_default();
        let unfit = |error: VerifierBuilderError| match (&error, &self.crl) {
            (VerifierBuilderError::InvalidCrl(_), Some(crl)) => malformed(crl, &error),
            _ => malformed(&self.ca, &error),
        };
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let clients = clients.with_crls(ders.clone()).build().map_err(unfit)?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
        let servers = servers.with_crls(ders).build().map_err(unfit)?;
        if let Some(lists) = &lists {
            self.check_coverage(lists, &own, clients.as_ref())?;
        }
        let is_revoked = lists.as_ref().is_some_and(|lists| lists.revoke(&own));
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| malformed(&self.cert, &e))?
            .with_client_cert_verifier(clients)
            .with_single_cert(own.clone(), key.clone_key())
            .map_err(|e| malformed(&self.cert, &e))?;
        server.alpn_protocols = vec![H2.to_vec()];
        // A resumed session would not verify the certificates again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| malformed(&self.cert, &e))?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(own, key)
            .map_err(|e| malformed(&self.cert, &e))?;
        client.alpn_protocols = vec![H2.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Settings { server: Arc::new(server), client: Arc::new(client), lists, is_revoked })
    }

    /// The revocation lists, of `authorities` or of those in the file of the certificate `own`.
    fn lists(&self, authorities: &[CertificateDer<'static>], own: &[CertificateDer<'static>]) -> Outcome<Option<Lists>> {
        let Some(crl) = &self.crl else { return Ok(None) };
        let certificates = [authorities, own.get(1..).unwrap_or(&[])].concat();
        Ok(Some(Lists::read(crl, Authorities { ca: &self.ca, certificates: &certificates })?))
    }

    /// Checks that certificates like `own` can be verified by `lists`: otherwise this host would refuse all others, too.
    fn check_coverage(
        &self,
        lists: &Lists,
        own: &[CertificateDer<'static>],
        clients: &dyn ClientCertVerifier,
    ) -> Result<(), ListError> {
        let Some((first, above)) = own.split_first() else { return Ok(()) };
        let path = lists.path().to_path_buf();
        match clients.verify_client_cert(first, above, UnixTime::now()) {
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownRevocationStatus)) => {
                let issuer = lists.without_list(own).unwrap_or_else(|| "its authority".to_owned());
                Err(ListError::NotCovered { path, cert: self.cert.clone(), issuer })
            }
            Err(error @ rustls::Error::InvalidCertRevocationList(_)) => {
                Err(ListError::Unusable { path, reason: error.to_string() })
            }
            // What else is wrong with the own certificate, the other end finds.
            _ => Ok(()),
        }
    }

    /// What changes whenever a file is written, replaced or made readable.
    pub(super) fn versions(&self) -> Versions {
        [Some(&self.cert), Some(&self.key), Some(&self.ca), self.crl.as_ref()].map(|file| {
            let found = file?.metadata().ok()?;
            Some((found.ctime(), found.ctime_nsec(), found.len(), found.ino()))
        })
    }
}

/// Time of change in seconds and nanoseconds, length and inode of the files.
pub(super) type Versions = [Option<(i64, i64, u64, u64)>; 4];

/// TLS settings.
pub struct Settings {
    /// Of connections that other hosts open.
    pub server: Arc<ServerConfig>,
    /// Of connections to other hosts.
    pub client: Arc<ClientConfig>,
    /// The revoked certificates.
    pub lists: Option<Lists>,
    /// Whether this process's own certificate is revoked.
    pub is_revoked: bool,
}

/// Returns `stream` if it begins with a TLS handshake; refuses it otherwise.
pub(super) async fn only_tls(mut stream: TcpStream) -> Result<Option<TcpStream>, Error> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_made_readable_is_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = Files { cert: path("cert"), key: path("key"), ca: path("ca"), crl: Some(path("crl")) };
        let mut versions = vec![files.versions()];
        let mut changed = |what: &str| {
            let now = files.versions();
            assert!(!versions.contains(&now), "{what}");
            versions.push(now);
            // The clock of a file system ticks every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        std::fs::write(path("crl"), "list").unwrap();
        changed("created");
        std::fs::write(path("crl"), "tsil").unwrap();
        changed("written with as many bytes");
        std::fs::set_permissions(path("crl"), PermissionsExt::from_mode(0o600)).unwrap();
        changed("made readable for its owner");
        std::fs::write(path("part"), "tsil").unwrap();
        std::fs::copy(path("part"), path("key")).unwrap();
        changed("another file created");
        std::fs::remove_file(path("crl")).unwrap();
        std::fs::hard_link(path("part"), path("crl")).unwrap();
        changed("replaced");
    }
}
