//! Owns: the certificates in use by a process: the newest that could be loaded, and the connections that they authenticate.
//!
//! What must hold: files that cannot be loaded change nothing; a connection ends within `CHECK_EVERY` and a moment after the
//! certificate of its other end was revoked, whichever end opened it.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tapestore::lsn::NodeId;
use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND};
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, CommonState};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::ServiceExt;

use super::revocable::Revocable;
use super::tls::{Files, H2, Settings, Versions, names, node_name, only_tls};
use crate::exit::{Failure, Outcome, USAGE};

/// Interval at which each connection looks for changed revocation lists.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Certificates and revocation lists that are in use.
pub struct Certificates {
    files: Files,
    newest: Mutex<Newest>,
}

struct Newest {
    as_of: Versions,
    settings: Arc<Settings>,
    /// Whether it was logged that a revocation list is out of date.
    is_overdue: bool,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads `files`.
    ///
    /// # Errors
    /// A file is unreadable or malformed.
    pub fn new(files: Files) -> Outcome<Arc<Certificates>> {
        let as_of = files.versions();
        let settings = Arc::new(files.settings()?);
        Ok(Arc::new(Certificates { files, newest: Mutex::new(Newest { as_of, settings, is_overdue: false }) }))
    }

    /// The files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The settings of the files as they are now, or as they last could be loaded.
    pub fn settings(&self) -> Arc<Settings> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.files.versions();
        if now != newest.as_of {
            newest.as_of = now;
            match self.files.settings() {
                Ok(settings) => {
                    let revoked = settings.lists.as_ref().map_or(0, super::crl::Lists::len);
                    tracing::info!(
                        name: "tls.reloaded", cert = %self.files.cert.display(), revoked, "loaded changed certificates"
                    );
                    (newest.settings, newest.is_overdue) = (Arc::new(settings), false);
                    self.log_revoked(&newest.settings);
                }
                Err(error) => tracing::error!(
                    name: "tls.reload_failed", %error,
                    "cannot load changed certificates or revocation lists; the earlier ones stay in use"
                ),
            }
        }
        self.log_overdue(&mut newest);
        newest.settings.clone()
    }

    /// Logs that this host's own certificate is revoked, if it is.
    pub fn log_revoked(&self, settings: &Settings) {
        if settings.is_revoked {
            tracing::error!(
                name: "tls.own_certificate_revoked", cert = %self.files.cert.display(),
                "this host's own certificate is revoked: no other host connects; replace it and its key"
            );
        }
    }

    /// Logs once that a list is past its next update.
    fn log_overdue(&self, newest: &mut Newest) {
        let Some(lists) = newest.settings.lists.as_ref().filter(|_| !newest.is_overdue) else { return };
        let now = i64::try_from(HostClock.wall().0 / NANOS_PER_SECOND).unwrap_or(i64::MAX);
        if lists.next_update().0 < now {
            tracing::warn!(
                name: "tls.list_overdue", list = %lists.path().display(),
                "the revocation list is past its next update; it still counts, and later revocations are missing"
            );
            newest.is_overdue = true;
        }
    }

    /// Authenticates the other end of `stream`, a client.
    pub fn accept(
        self: &Arc<Self>,
        stream: TcpStream,
    ) -> impl Future<Output = Result<Revocable<server::TlsStream<TcpStream>>, Error>> + use<> {
        let (certificates, settings) = (self.clone(), self.settings());
        async move {
            let Some(stream) = only_tls(stream).await? else { return Err(Error::other("the client does not use TLS")) };
            let stream = TlsAcceptor::from(settings.server.clone()).accept(stream).await?;
            let other = of_other_end(stream.get_ref().1);
            Ok(certificates.revocable(stream, other, settings))
        }
    }

    /// What to do for a connection to host `node` of the cluster with the identity `cluster`.
    ///
    /// # Errors
    /// This process's own certificate is wrong or revoked.
    pub fn dial(self: &Arc<Self>, node: NodeId, cluster: u128) -> Outcome<Dial> {
        let Files { cert, crl, .. } = &self.files;
        let clusters = self.files.clusters(cluster)?;
        let name = node_name(node, clusters.first().map_or("", String::as_str));
        let bad = |why: String| Failure::new(USAGE, format!("{}: {why}", cert.display()));
        if self.settings().is_revoked {
            let crl = crl.as_ref().map(|crl| crl.display().to_string()).unwrap_or_default();
            return Err(bad(format!(
                "the certificate is revoked by {crl}: your authority has to issue a new one with a new key"
            )));
        }
        let name = ServerName::try_from(name).map_err(|e| bad(e.to_string()))?;
        Ok(Dial { certificates: self.clone(), name })
    }

    /// The connection `stream`, whose other end has authenticated with the certificates `other` under `settings`.
    fn revocable<S>(self: Arc<Self>, stream: S, other: Vec<CertificateDer<'static>>, settings: Arc<Settings>) -> Revocable<S> {
        let has_lists = self.files.crl.is_some();
        Revocable::new(stream, has_lists.then(|| Box::pin(self.revoked(other, settings)) as super::revocable::Revoked))
    }

    /// Waits until one of the certificates `other` is revoked, which none was by `settings`.
    async fn revoked(self: Arc<Self>, other: Vec<CertificateDer<'static>>, mut settings: Arc<Settings>) {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            let now = self.settings();
            if Arc::ptr_eq(&now, &settings) {
                continue;
            }
            settings = now;
            if settings.lists.as_ref().is_some_and(|lists| lists.revoke(&other)) {
                let of = other.first().map(|certificate| names(certificate)).unwrap_or_default();
                tracing::warn!(name: "tls.connection_revoked", ?of, "ended a connection: the certificate of its other end was revoked");
                return;
            }
        }
    }
}

/// The certificates of the other end: its own, and those between it and an authority.
fn of_other_end(state: &CommonState) -> Vec<CertificateDer<'static>> {
    state.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect()
}

/// A connection to open.
#[derive(Clone)]
pub struct Dial {
    certificates: Arc<Certificates>,
    name: ServerName<'static>,
}

impl Dial {
    /// Connects `endpoint`, an `http` one: TLS is added here.
    ///
    /// # Errors
    /// The connection or the authentication failed; see [`super::tls::why`].
    pub async fn connect(self, endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(endpoint.get_connect_timeout());
        let secure = Uri::builder().scheme("https").authority(endpoint.uri().authority().map_or("", |a| a.as_str()));
        let endpoint = match secure.path_and_query("/").build() {
            Ok(origin) => endpoint.origin(origin),
            Err(_) => endpoint,
        };
        let connector = tower::service_fn(move |address: Uri| {
            let (tcp, dial) = (tcp.clone(), self.clone());
            async move {
                let stream = tcp.oneshot(address).await.map_err(Error::other)?;
                dial.authenticate(stream.into_inner()).await.map(TokioIo::new)
            }
        });
        endpoint.connect_with_connector(connector).await
    }

    /// Authenticates both ends of `stream`.
    async fn authenticate(&self, stream: TcpStream) -> Result<Revocable<client::TlsStream<TcpStream>>, Error> {
        let settings = self.certificates.settings();
        let connecting = TlsConnector::from(settings.client.clone()).connect(self.name.clone(), stream);
        let mut stream = connecting.await.map_err(|e| self.explain(e))?;
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            return Err(Error::new(ErrorKind::InvalidData, "the other end does not use HTTP/2"));
        }
        // With TLS 1.3 a server sends after the handshake whether it accepts this certificate: an alert, or its first bytes.
        if stream.fill_buf().await.map_err(|e| self.explain(e))?.is_empty() {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the other end has closed the connection after the handshake"));
        }
        let other = of_other_end(stream.get_ref().1);
        Ok(self.certificates.clone().revocable(stream, other, settings))
    }

    /// `error` of a handshake, with what it means.
    fn explain(&self, error: Error) -> Error {
        let cert = self.certificates.files.cert.display();
        let cause = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        let meaning = match cause {
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)) => {
                format!("the other end refuses {cert}: this certificate is revoked")
            }
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
                format!("the other end refuses {cert}: this certificate has expired")
            }
            Some(rustls::Error::AlertReceived(AlertDescription::UnknownCA)) => {
                format!("the other end refuses {cert}: it does not trust the authority of this certificate")
            }
            _ => return error,
        };
        Error::new(error.kind(), format!("{meaning} ({error})"))
    }
}
