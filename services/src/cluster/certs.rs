//! Owns: `tape cluster certs`: an authority, certificates and their revocation, for trials. A production cluster uses an existing
//! authority.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tapestore::disk::RealDisk;
use tapestore::lsn::NodeId;
use tapestore::time::{Clock, HostClock};
use tapestore_engine::cluster_admin::store_id;

use super::revocation;
use crate::exit::{Failure, INTERNAL, NO_INPUT, Outcome, USAGE};
use crate::output::Format;
use crate::replication::tls::{node_name, operator_name};
use crate::stdout::say;

/// Options of `tape cluster certs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory for the files; existing files are kept
    #[arg(long)]
    dir: PathBuf,
    /// Name of the cluster in the certificates, node-N.CLUSTER and operator.CLUSTER [default: the identity of the cluster of
    /// --store]
    #[arg(long)]
    cluster: Option<String>,
    /// Node numbers of the hosts, separated by commas
    #[arg(long, value_delimiter = ',', required_unless_present = "revoke")]
    nodes: Vec<u64>,
    /// Revoke certificates instead: node-N or operator for a file of --dir, or the path of a certificate; separated by commas.
    /// They are added to the revocation list crl.pem in --dir
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["nodes", "cluster"])]
    revoke: Vec<String>,
}

/// Creates `ca.pem`, its empty revocation list `crl.pem`, and a certificate and a key for each host and for an operator; or
/// revokes certificates.
///
/// # Errors
/// A file cannot be created; the directory is not a store and --cluster is absent; a certificate to revoke is not of this
/// authority.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let failed = |e: rcgen::Error| Failure::new(INTERNAL, format!("cannot create a certificate: {e}"));
    if !args.revoke.is_empty() {
        let issuer = existing(&args.dir).map_err(|e| e.unwrap_or_else(failed))?.ok_or_else(|| {
            let why = format!("{} has no authority, ca.pem and ca.key: a list is signed with its key", args.dir.display());
            Failure::new(NO_INPUT, why)
        })?;
        return revocation::revoke(&args.dir, &issuer, &args.revoke, format);
    }
    let cluster = match &args.cluster {
        Some(name) if is_dns_name(name) => name.clone(),
        // A name that is no DNS name is replaced by its identity.
        Some(name) => format!("{:032x}", store_id(name)),
        None => {
            let meta = tapestore::wal::meta::read(&RealDisk, store)?;
            let meta = meta.ok_or_else(|| Failure::new(USAGE, format!("{} is not a store; give --cluster", store.display())))?;
            format!("{:032x}", meta.store_id)
        }
    };
    std::fs::create_dir_all(&args.dir)?;
    let issuer = authority(&args.dir, format).map_err(|e| e.unwrap_or_else(failed))?;
    revocation::begin(&args.dir, &issuer, format)?;
    let mut names: Vec<(String, String)> =
        args.nodes.iter().map(|n| (format!("node-{n}"), node_name(NodeId(*n), &cluster))).collect();
    names.push(("operator".to_owned(), operator_name(&cluster)));
    for (file, name) in names {
        let (cert_path, key_path) = (args.dir.join(format!("{file}.pem")), args.dir.join(format!("{file}.key")));
        if cert_path.exists() || key_path.exists() {
            report(format, &cert_path, &name, true);
            continue;
        }
        let mut params = CertificateParams::new(vec![name.clone()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name.clone());
        live_a_year(&mut params);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &issuer).map_err(failed)?;
        create(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        create(&cert_path, cert.pem().as_bytes(), 0o644)?;
        report(format, &cert_path, &name, false);
    }
    if format.json {
        return Ok(());
    }
    let (ca, crl) = (args.dir.join("ca.pem"), args.dir.join(revocation::NAME));
    let (ca, crl) = (ca.display(), crl.display());
    say(format!("next: tape-replication with --tls-cert, --tls-key, --tls-ca {ca} and, to revoke later, --tls-crl {crl}"));
    Ok(())
}

/// Prints that the certificate of `name` is in the file `path`.
fn report(format: Format, path: &Path, name: &str, is_kept: bool) {
    if format.json {
        say(serde_json::json!({ "certificate": path.display().to_string(), "name": name, "kept": is_kept }));
    } else if is_kept {
        say(format!("{}: exists already, kept", path.display()));
    } else {
        say(format!("{}: certificate of {name}", path.display()));
    }
}

/// Certificates for trials are valid for a year, and from yesterday on for hosts whose clocks are behind.
fn live_a_year(params: &mut CertificateParams) {
    let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0);
    params.not_before = now - Duration::from_secs(24 * 3600);
    params.not_after = now + Duration::from_secs(365 * 24 * 3600);
}

/// Whether `cluster` can be the part after the dot of a DNS name.
fn is_dns_name(cluster: &str) -> bool {
    let is_label = |l: &str| {
        let is_fit = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=63).contains(&l.len()) && is_fit && !l.starts_with('-') && !l.ends_with('-')
    };
    cluster.len() <= 200 && cluster.split('.').all(is_label)
}

/// The authority in `dir`.
fn existing(dir: &Path) -> Result<Option<Issuer<'static, KeyPair>>, FailureOr> {
    let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    if !cert_path.exists() || !key_path.exists() {
        return Ok(None);
    }
    let key = KeyPair::from_pem(&std::fs::read_to_string(&key_path)?)?;
    Ok(Some(Issuer::from_ca_cert_pem(&std::fs::read_to_string(&cert_path)?, key)?))
}

/// The authority in `dir`; created if absent.
fn authority(dir: &Path, format: Format) -> Result<Issuer<'static, KeyPair>, FailureOr> {
    if let Some(issuer) = existing(dir)? {
        return Ok(issuer);
    }
    let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    let mut params = CertificateParams::new(Vec::new())?;
    // Revocation lists are found by the name of their authority: each has its own.
    let name = format!("tapestore trial authority {:08x}", fastrand::u32(..));
    params.distinguished_name.push(DnType::CommonName, name);
    live_a_year(&mut params);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    create(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
    create(&cert_path, cert.pem().as_bytes(), 0o644)?;
    if format.json {
        report(format, &cert_path, "certificate authority", false);
    } else {
        say(format!("{}: certificate authority. Keep its key safe: a host with it can join the cluster", cert_path.display()));
    }
    Ok(Issuer::new(params, key))
}

/// The reason why there is no authority.
enum FailureOr {
    Failure(Failure),
    Certificate(rcgen::Error),
}

impl FailureOr {
    fn unwrap_or_else(self, failed: impl FnOnce(rcgen::Error) -> Failure) -> Failure {
        match self {
            FailureOr::Failure(failure) => failure,
            FailureOr::Certificate(error) => failed(error),
        }
    }
}

impl From<rcgen::Error> for FailureOr {
    fn from(error: rcgen::Error) -> FailureOr {
        FailureOr::Certificate(error)
    }
}

impl From<std::io::Error> for FailureOr {
    fn from(error: std::io::Error) -> FailureOr {
        FailureOr::Failure(error.into())
    }
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
}
