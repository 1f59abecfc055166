//! Owns: the lists of revoked certificates (CRLs) in a file: reading them, whose they are, what they revoke.
//!
//! What must hold: a list counts only if it is signed by an authority that this host trusts; anything else in its place is an
//! error with the file and the reason. A list counts past its next update too: a list that nobody renewed must not end a
//! cluster at night.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The reason why the lists in a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The file has no list in PEM form.
    #[error(
        "{}: the file has no revocation list in PEM form (BEGIN X509 CRL); to convert one: openssl crl -inform DER -in LIST -out FILE",
        path.display()
    )]
    NoList {
        /// The file.
        path: PathBuf,
    },
    /// Something in the file is no list.
    #[error("{}: revocation list {number} of the file is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which list, from 1 on.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// A list of an authority that this host does not trust.
    #[error("{}: revocation list {number} of the file is of '{issuer}', which is no authority in {}", path.display(), ca.display())]
    OtherAuthority {
        /// The file.
        path: PathBuf,
        /// Which list, from 1 on.
        number: usize,
        /// The name in the list.
        issuer: String,
        /// The file with the authorities.
        ca: PathBuf,
    },
    /// A list with the name of an authority, and not signed with its key.
    #[error(
        "{}: revocation list {number} of the file has the name of '{issuer}', and is not signed with the key of that authority \
         in {}: {reason}",
        path.display(), ca.display()
    )]
    Signature {
        /// The file.
        path: PathBuf,
        /// Which list, from 1 on.
        number: usize,
        /// The name in the list.
        issuer: String,
        /// The file with the authorities.
        ca: PathBuf,
        /// What the signature is.
        reason: String,
    },
    /// Two authorities have one name, by which lists are found.
    #[error(
        "{}: two authorities have the name '{issuer}', so that a revocation list would count for certificates of both: give the \
         new authority a name of its own",
        ca.display()
    )]
    SameName {
        /// The name.
        issuer: String,
        /// The file with the authorities.
        ca: PathBuf,
    },
    /// No list is for this process's own certificate, so none is for others like it.
    #[error(
        "{}: no revocation list of the file is for certificates that '{issuer}' has signed, as for {}: add one; the file needs one \
         of each authority above a host",
        path.display(), cert.display()
    )]
    NotCovered {
        /// The file.
        path: PathBuf,
        /// This process's own certificate.
        cert: PathBuf,
        /// Its authority.
        issuer: String,
    },
    /// The TLS library refuses a list.
    #[error("{}: a revocation list of the file cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// Authorities: those in the file `ca`, and certificates between them and a host.
#[derive(Clone, Copy, Debug)]
pub struct Authorities<'a> {
    /// The file.
    pub ca: &'a Path,
    /// Their certificates.
    pub certificates: &'a [CertificateDer<'static>],
}

/// A certificate: its issuer and its serial number.
type Id = (Vec<u8>, Vec<u8>);

/// The lists in a file.
#[derive(Clone, Debug)]
pub struct Lists {
    path: PathBuf,
    /// The newest first: the TLS library uses the first that is for a certificate.
    ders: Vec<CertificateRevocationListDer<'static>>,
    /// Whose they are.
    issuers: HashSet<Vec<u8>>,
    revoked: HashSet<Id>,
    /// When the first of them is out of date, and the second before at which it was made; seconds since 1970.
    next_update: i64,
    this_update: i64,
}

fn id(certificate: &X509Certificate<'_>) -> Id {
    (certificate.issuer().as_raw().to_vec(), certificate.tbs_certificate.serial.to_bytes_be())
}

/// The lists in the file `path`.
fn ders(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, ListError> {
    let pem = std::fs::read(path).map_err(|source| ListError::Read { path: path.to_path_buf(), source })?;
    let all: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    if all.is_empty() {
        return Err(ListError::NoList { path: path.to_path_buf() });
    }
    let named = (1..)
        .zip(all)
        .map(|(number, der)| der.map_err(|e| ListError::Malformed { path: path.to_path_buf(), number, reason: e.to_string() }));
    named.collect()
}

/// When the first list in the file `path` is out of date, seconds since 1970; `None` if none can be read.
pub fn next_update(path: &Path) -> Option<u64> {
    let ders = ders(path).ok()?;
    let all = ders.iter().filter_map(|der| {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        u64::try_from(list.next_update()?.timestamp()).ok()
    });
    all.min()
}

impl Lists {
    /// Reads the lists in the file `path`, each of which must be of one of `authorities`.
    ///
    /// # Errors
    /// [`ListError`].
    pub fn read(path: &Path, authorities: Authorities<'_>) -> Result<Lists, ListError> {
        let (mut issuers, mut revoked) = (HashSet::new(), HashSet::new());
        let (mut ends, mut dated) = (Vec::new(), Vec::new());
        for (number, der) in (1..).zip(ders(path)?) {
            let malformed = |reason: String| ListError::Malformed { path: path.to_path_buf(), number, reason };
            let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|e| malformed(e.to_string()))?;
            if !rest.is_empty() {
                return Err(malformed(format!("{} bytes follow it", rest.len())));
            }
            if list.crl_number().is_none() {
                return Err(malformed(
                    "it has no number; openssl ca gives it one with crlnumber in its configuration".to_owned(),
                ));
            }
            let next = list.next_update().ok_or_else(|| malformed("it has no next update".to_owned()))?.timestamp();
            verify(path, number, &list, authorities)?;
            let issuer = list.issuer().as_raw();
            issuers.insert(issuer.to_vec());
            revoked.extend(list.iter_revoked_certificates().map(|one| (issuer.to_vec(), one.serial().to_bytes_be())));
            let made = list.last_update().timestamp();
            ends.push((next, made));
            dated.push(((made, list.crl_number().cloned()), der.clone()));
        }
        dated.sort_by(|(one, _), (other, _)| other.cmp(one));
        let ders = dated.into_iter().map(|(_, der)| der).collect();
        let (next_update, this_update) = ends.into_iter().min().unwrap_or_default();
        Ok(Lists { path: path.to_path_buf(), ders, issuers, revoked, next_update, this_update })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lists for the TLS library.
    pub fn ders(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.ders.clone()
    }

    /// Whether one of `certificates`, a host's and those above it, is revoked.
    pub fn revoke(&self, certificates: &[CertificateDer<'_>]) -> bool {
        certificates.iter().any(|der| X509Certificate::from_der(der).is_ok_and(|(_, parsed)| self.revoked.contains(&id(&parsed))))
    }

    /// The authority of the first of `certificates`, a host's and those above it, that has no list here.
    pub fn without_list(&self, certificates: &[CertificateDer<'_>]) -> Option<String> {
        let parsed = certificates.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1));
        let mut without = parsed.filter(|parsed| !self.issuers.contains(parsed.issuer().as_raw()));
        without.next().map(|parsed| parsed.issuer().to_string())
    }

    /// How many certificates are revoked.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether no certificate is revoked.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// When the first list is out of date, and when it was made: seconds since 1970.
    pub fn next_update(&self) -> (i64, i64) {
        (self.next_update, self.this_update)
    }
}

/// Checks that `list` is of one of `authorities`, and that no other one has the same name.
fn verify(
    path: &Path,
    number: usize,
    list: &CertificateRevocationList<'_>,
    authorities: Authorities<'_>,
) -> Result<(), ListError> {
    let (path, ca, issuer) = (path.to_path_buf(), authorities.ca.to_path_buf(), list.issuer().to_string());
    let parsed = authorities.certificates.iter().filter_map(|der| X509Certificate::from_der(der).ok());
    let named: Vec<_> = parsed.map(|(_, c)| c).filter(|c| c.subject().as_raw() == list.issuer().as_raw()).collect();
    let mut keys: Vec<&SubjectPublicKeyInfo<'_>> = named.iter().map(|c| c.public_key()).collect();
    // An authority that was renewed with the same key is one.
    keys.sort_by_key(|key| key.raw);
    keys.dedup_by_key(|key| key.raw);
    match keys.as_slice() {
        [] => Err(ListError::OtherAuthority { path, number, issuer, ca }),
        [key] => {
            let signed = list.verify_signature(key);
            signed.map_err(|e| ListError::Signature { path, number, issuer, ca, reason: e.to_string() })
        }
        _ => Err(ListError::SameName { issuer, ca }),
    }
}
