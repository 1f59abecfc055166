//! Owns: the revocation list of the authority for trials.
//!
//! What must hold: what was revoked stays revoked; the list is replaced as a whole, because running hosts read it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams, SerialNumber};
use tapestore::disk::{self, RealDisk};
use tapestore::time::{Clock, HostClock};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::exit::{DATA, Failure, INTERNAL, NO_INPUT, Outcome, USAGE};
use crate::output::Format;
use crate::replication::crl::{Authorities, Lists};
use crate::replication::tls::names;
use crate::stdout::say;

/// Name of the list in the directory of the authority.
pub const NAME: &str = "crl.pem";
/// How long a list is valid: as long as the certificates.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// The entries of the list in `dir`, and its number; none if there is no list.
fn entries(dir: &Path) -> Outcome<(Vec<RevokedCertParams>, u64)> {
    let path = dir.join(NAME);
    if !path.exists() {
        return Ok((Vec::new(), 0));
    }
    let ca = dir.join("ca.pem");
    let authority = certificate(&ca)?;
    Lists::read(&path, Authorities { ca: &ca, certificates: &[authority] })?;
    let malformed = |why: String| Failure::new(DATA, format!("{}: {why}", path.display()));
    let der = CertificateRevocationListDer::from_pem_file(&path).map_err(|e| malformed(e.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|e| malformed(e.to_string()))?;
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    let entries = list.iter_revoked_certificates().map(|one| RevokedCertParams {
        serial_number: SerialNumber::from(one.serial().to_bytes_be()),
        revocation_time: one.revocation_date.to_datetime(),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    });
    Ok((entries.collect(), number))
}

/// The first certificate in the file `path`.
fn certificate(path: &Path) -> Outcome<CertificateDer<'static>> {
    let pem = std::fs::read(path).map_err(|e| Failure::new(NO_INPUT, format!("{}: {e}", path.display())))?;
    CertificateDer::from_pem_slice(&pem).map_err(|e| Failure::new(DATA, format!("{}: {e}", path.display())))
}

/// Writes a list with `revoked` and the number `number` to `dir`.
fn write(dir: &Path, issuer: &Issuer<'static, KeyPair>, revoked: Vec<RevokedCertParams>, number: u64) -> Outcome {
    let failed = |e: rcgen::Error| Failure::new(INTERNAL, format!("cannot create a revocation list: {e}"));
    let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0);
    let list = CertificateRevocationListParams {
        this_update: now,
        next_update: now + VALID,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(issuer).and_then(|list| list.pem()).map_err(failed)?;
    let path = dir.join(NAME);
    disk::publish(&RealDisk, &path, pem.as_bytes())?;
    // Nothing in it is secret, and hosts run as other users.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
    Ok(())
}

/// Creates an empty list in `dir`, if there is none: hosts can be started with it, and need no restart to revoke.
///
/// # Errors
/// The list cannot be written.
pub fn begin(dir: &Path, issuer: &Issuer<'static, KeyPair>, format: Format) -> Outcome {
    let path = dir.join(NAME);
    if path.exists() {
        return Ok(());
    }
    write(dir, issuer, Vec::new(), 1)?;
    if format.json {
        say(serde_json::json!({ "revocation_list": path.display().to_string(), "revoked": 0 }));
    } else {
        say(format!("{}: revocation list, empty", path.display()));
    }
    Ok(())
}

/// Adds the certificates `which` to the list in `dir`: names of files there, or paths.
///
/// # Errors
/// A certificate is unreadable or not of this authority; the list is malformed or cannot be written.
pub fn revoke(dir: &Path, issuer: &Issuer<'static, KeyPair>, which: &[String], format: Format) -> Outcome {
    let (mut entries, number) = entries(dir)?;
    let ca = dir.join("ca.pem");
    let authority = certificate(&ca)?;
    let unfit = |path: &Path, why: &str| Failure::new(USAGE, format!("{}: {why}", path.display()));
    let (_, authority) = X509Certificate::from_der(&authority).map_err(|e| unfit(&ca, &e.to_string()))?;
    let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0);
    let mut revoked = Vec::new();
    for name in which {
        let own = dir.join(format!("{name}.pem"));
        let path = if own.exists() { own } else { PathBuf::from(name) };
        let der = certificate(&path)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| unfit(&path, &e.to_string()))?;
        if parsed.verify_signature(Some(authority.public_key())).is_err() || parsed.is_ca() {
            let why = format!("it is not a certificate of a host or an operator that the authority {} has signed", ca.display());
            return Err(unfit(&path, &why));
        }
        let serial_number = SerialNumber::from(parsed.tbs_certificate.serial.to_bytes_be());
        let of = names(&der).join(", ");
        revoked.push((of, parsed.raw_serial_as_string()));
        if entries.iter().all(|entry| entry.serial_number != serial_number) {
            let reason_code = Some(RevocationReason::KeyCompromise);
            entries.push(RevokedCertParams { serial_number, revocation_time: now, reason_code, invalidity_date: None });
        }
    }
    let count = entries.len();
    write(dir, issuer, entries, number.saturating_add(1))?;
    let path = dir.join(NAME);
    let path = path.display();
    if format.json {
        let names: Vec<_> = revoked.iter().map(|(of, serial)| serde_json::json!({ "name": of, "serial": serial })).collect();
        say(serde_json::json!({ "revocation_list": path.to_string(), "revoked": count, "added": names }));
        return Ok(());
    }
    revoked.iter().for_each(|(of, serial)| say(format!("{path}: revokes {of}, serial {serial}")));
    say(format!("{path}: {count} revoked certificates in all"));
    say("next: copy the list over the --tls-crl file of every host and operator; no restart".to_owned());
    say("for a new certificate: remove the old .pem and .key here, then run tape cluster certs with --nodes".to_owned());
    Ok(())
}
