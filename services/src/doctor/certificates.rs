//! Owns: the certificates of the replication process: when they end, whether they are of a host, whether the key fits, whether
//! they are revoked, and when the revocation list is out of date.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tapestore::time::{Clock, HostClock, NANOS_PER_SECOND, Ts};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::finding::Finding;
use super::host::Host;
use super::permissions;
use crate::replication::crl::{Authorities, ListError, Lists};
use crate::replication::tls::Files;

/// A certificate that ends sooner is a warning.
const NEAR: u64 = 30 * 86_400;
/// A revocation list with less than this part of its time left is a warning.
const NEAR_PART: i64 = 5;

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    let Some(tls) = &host.tls else {
        return vec![Finding::ok("certificate", "none is configured (--replication-config, or --tls-cert, --tls-key, --tls-ca)")];
    };
    let owner = host.store.metadata().map_or_else(|_| tapestore::shm::user::own(), |found| found.uid());
    let lists = revocation_lists(tls);
    vec![
        lists.as_ref().ok().and_then(|lists| revoked(tls, lists.as_ref()?)).unwrap_or_else(|| {
            // Without lists, or with sound ones that do not have it.
            certificate("certificate", &tls.cert, Some(&tls.key))
        }),
        certificate("authority", &tls.ca, None),
        revocation_list(&lists),
        permissions::key("tls-key", &tls.key, owner),
    ]
}

/// The revocation lists, if a file of them is configured.
fn revocation_lists(tls: &Files) -> Result<Option<Lists>, ListError> {
    let Some(crl) = &tls.crl else { return Ok(None) };
    // What is wrong with these two files is a finding of its own.
    let all =
        |path: &Path| CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).unwrap_or_default();
    let certificates = [all(&tls.ca), all(&tls.cert).into_iter().skip(1).collect()].concat();
    Lists::read(crl, Authorities { ca: &tls.ca, certificates: &certificates }).map(Some)
}

/// That this host's certificate is in `lists`.
fn revoked(tls: &Files, lists: &Lists) -> Option<Finding> {
    let own = CertificateDer::from_pem_file(&tls.cert).ok().filter(|own| lists.revoke(std::slice::from_ref(own)))?;
    let serial = X509Certificate::from_der(&own).map_or_else(|_| String::new(), |(_, parsed)| parsed.raw_serial_as_string());
    let found = format!("{} (serial {serial}) is revoked by {}", tls.cert.display(), lists.path().display());
    let needed = "a certificate that is not revoked: every other host refuses the connection";
    let command = "issue a new certificate with a new key and replace both files: they are used from the next connection on; for a \
                   trial: remove the files and run tape cluster certs";
    Some(Finding::problem("certificate", found, needed, command))
}

/// The finding of the revocation lists.
fn revocation_list(lists: &Result<Option<Lists>, ListError>) -> Finding {
    const NAME: &str = "revocation-list";
    let lists = match lists {
        Ok(Some(lists)) => lists,
        Ok(None) => return Finding::ok(NAME, "none is configured (--tls-crl): certificates cannot be revoked"),
        Err(error) => {
            let needed = "revocation lists of the authorities that signed the certificates: tape-replication does not start with \
                          these, and a running one keeps the earlier ones";
            return Finding::problem(
                NAME,
                error.to_string(),
                needed,
                "openssl crl -noout -text -in FILE; page cluster, Revocation",
            );
        }
    };
    let (to, from) = lists.next_update();
    let (shown, left) = (lists.path().display(), to - now());
    let found = format!("{shown} revokes {} certificates, and is to be renewed by {}", lists.len(), at(to));
    let renew =
        "openssl ca -gencrl with your authority, and replace the file on every host; for a trial: tape cluster certs --revoke";
    if left < 0 {
        let needed = "a list of today: this one still counts, and what was revoked since is not in it";
        return Finding::warning(NAME, format!("{found}: that has passed"), needed, renew);
    }
    if left < (to - from) / NEAR_PART {
        let needed = "a newer list before then: this one still counts afterwards, and later revocations are missing";
        return Finding::warning(NAME, format!("{found}: {} hours are left", left / 3600), needed, renew);
    }
    Finding::ok(NAME, found)
}

/// Seconds since 1970.
fn now() -> i64 {
    i64::try_from(HostClock.wall().0 / NANOS_PER_SECOND).unwrap_or(i64::MAX)
}

/// The finding of the certificate in the file `path`; `key` is of a host's own one.
fn certificate(name: &'static str, path: &Path, key: Option<&Path>) -> Finding {
    let shown = path.display();
    let check = format!("openssl x509 -noout -text -in {shown}");
    let ders: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let ders = match ders {
        Ok(ders) if !ders.is_empty() => ders,
        Ok(_) => return Finding::problem(name, format!("{shown} holds no certificate"), "a certificate in PEM form", check),
        Err(error) => {
            let needed = "a certificate in PEM form: tape-replication does not start without it";
            return Finding::problem(name, format!("{shown}: {error}"), needed, format!("ls -l {shown}"));
        }
    };
    let mut worst = None;
    for der in &ders {
        let finding = match X509Certificate::from_der(der) {
            Ok((_, parsed)) => of(name, path, &parsed, key),
            Err(error) => {
                let needed = "a certificate that can be read: other hosts refuse this one";
                Finding::problem(name, format!("{shown}: {error}"), needed, check.clone())
            }
        };
        if worst.as_ref().is_none_or(|worst: &Finding| finding.severity < worst.severity) {
            worst = Some(finding);
        }
        // Only the first one is the host's own.
        if key.is_some() {
            break;
        }
    }
    worst.unwrap_or_else(|| Finding::ok(name, shown.to_string()))
}

/// A time of a certificate, in seconds, as text.
fn at(seconds: i64) -> String {
    let ns = u64::try_from(seconds).unwrap_or(0).saturating_mul(NANOS_PER_SECOND);
    Ts(ns).to_string()
}

/// The finding of one certificate.
fn of(name: &'static str, path: &Path, parsed: &X509Certificate<'_>, key: Option<&Path>) -> Finding {
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let now = now();
    let shown = path.display();
    let found = format!("{shown} is valid from {} to {}", at(from), at(to));
    let renew = "issue a new one with your authority and replace the file: it is used from the next connection on; for a trial: \
                 remove the files and run tape cluster certs";
    let clock = format!("date; {renew}");
    if now > to {
        let needed = "a certificate that has not ended: every other host refuses the connection";
        return Finding::problem(name, found, needed, renew);
    }
    if now < from {
        let needed = "a certificate that is valid already, or a clock that is right: every other host refuses the connection";
        return Finding::problem(name, found, needed, clock);
    }
    if let Some(wrong) = key.and_then(|key| mismatch(path, parsed, key)) {
        return Finding { name, ..wrong };
    }
    if to - now < i64::try_from(NEAR).unwrap_or(i64::MAX) {
        let needed = format!("more than {} days: the hosts stop reaching each other when it ends", NEAR / 86_400);
        return Finding::warning(name, format!("{found}: {} days are left", (to - now) / 86_400), needed, renew);
    }
    Finding::ok(name, found)
}

/// That the certificate `parsed` of a host is not for `key`, or not of a host.
fn mismatch(path: &Path, parsed: &X509Certificate<'_>, key: &Path) -> Option<Finding> {
    let shown = path.display();
    let text = std::fs::read_to_string(key).ok()?;
    if let Ok(pair) = rcgen::KeyPair::from_pem(&text)
        && rcgen::PublicKeyData::subject_public_key_info(&pair) != parsed.public_key().raw
    {
        let needed = "a key and a certificate of one pair: tape-replication does not start with these";
        let command = format!("openssl x509 -noout -pubkey -in {shown}; openssl pkey -pubout -in {}", key.display());
        return Some(Finding::problem("certificate", format!("{shown} is not for the key {}", key.display()), needed, command));
    }
    let names =
        parsed.subject_alternative_name().ok().flatten().map(|names| names.value.general_names.clone()).unwrap_or_default();
    let names: Vec<&str> =
        names.iter().filter_map(|name| if let GeneralName::DNSName(dns) = name { Some(*dns) } else { None }).collect();
    if names.iter().any(|name| name.to_ascii_lowercase().starts_with("node-")) {
        return None;
    }
    let found = format!("{shown} is for the names {names:?}");
    let needed = "the name node-N.CLUSTER: other hosts recognise this host by it and refuse it otherwise";
    Some(Finding::problem("certificate", found, needed, "tape cluster certs --help, and page cluster"))
}
