//! Owns: who may connect to a server of SQL, and how a connection is encrypted.
//!
//! What must hold: no user has an empty name or an empty password.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use subtle::ConstantTimeEq;
use tokio_rustls::rustls::ServerConfig;

use crate::failure::QueryError;

/// Who may connect, and how. It may change while the process runs: connections and logins from then on are as it says then.
pub struct Access(RwLock<Arc<Rules>>);

/// Who may connect, and how, as of one moment.
pub struct Rules {
    /// Certificates; `None`: connections are not encrypted.
    pub tls: Option<Arc<ServerConfig>>,
    /// The password of each user; `None`: whoever reaches the server may use it, so it listens on a loopback address.
    pub passwords: Option<BTreeMap<String, String>>,
    /// How often the passwords have changed: what a login was given before is void.
    pub number: u64,
}

impl Access {
    /// As `rules` say.
    pub fn new(rules: Rules) -> Access {
        Access(RwLock::new(Arc::new(rules)))
    }

    /// For a loopback address: no encryption, no passwords.
    pub fn open() -> Access {
        Access::new(Rules { tls: None, passwords: None, number: 0 })
    }

    /// The rules now.
    pub fn now(&self) -> Arc<Rules> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it is as `rules` say.
    pub fn change(&self, rules: Rules) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let number = now.number + u64::from(rules.passwords != now.passwords);
        *now = Arc::new(Rules { number, ..rules });
    }

    /// For the users of `passwords`.
    ///
    /// # Errors
    /// As [`Rules::with`].
    pub fn with(passwords: BTreeMap<String, String>, tls: Option<Arc<ServerConfig>>) -> Result<Access, QueryError> {
        Rules::with(passwords, tls).map(Access::new)
    }

    /// Checks the header `authorization` of a request.
    ///
    /// # Errors
    /// Why it admits nobody.
    pub fn admits(&self, login: Option<&str>) -> Result<(), &'static str> {
        self.now().passwords.as_ref().map_or(Ok(()), |passwords| check(login, passwords))
    }
}

impl Rules {
    /// For the users of `passwords`.
    ///
    /// # Errors
    /// There is no user, or one has no name or no password.
    pub fn with(passwords: BTreeMap<String, String>, tls: Option<Arc<ServerConfig>>) -> Result<Rules, QueryError> {
        let refuse = |reason: String| Err(QueryError::Statement { reason });
        if passwords.is_empty() {
            return refuse("there is no user with a password".to_owned());
        }
        for (name, password) in &passwords {
            if name.is_empty() || password.is_empty() {
                return refuse(format!("user '{name}' has no {}", if name.is_empty() { "name" } else { "password" }));
            }
        }
        Ok(Rules { tls, passwords: Some(passwords), number: 0 })
    }
}

/// The part of the header `login` for the scheme `scheme`.
pub fn credentials<'a>(login: &'a str, scheme: &str) -> Option<&'a str> {
    let (of, value) = login.split_once(' ')?;
    of.eq_ignore_ascii_case(scheme).then(|| value.trim())
}

/// Checks the name and the password of HTTP's basic authentication.
///
/// # Errors
/// They are not of one of the users.
pub fn check(login: Option<&str>, passwords: &BTreeMap<String, String>) -> Result<(), &'static str> {
    let decoded = login.and_then(|login| credentials(login, "basic")).and_then(|text| BASE64_STANDARD.decode(text).ok());
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((name, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
        return Err("a login needs a user and a password, as HTTP's basic authentication");
    };
    let known = passwords.get(name);
    let due = known.map_or("", String::as_str);
    let is_it = bool::from(due.as_bytes().ct_eq(password.as_bytes()));
    if is_it && known.is_some() && !password.is_empty() {
        return Ok(());
    }
    Err("the user or the password is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_passwords_void_what_logins_were_given_and_other_certificates_do_not() {
        let rules = |password: &str| Rules::with(BTreeMap::from([("ann".to_owned(), password.to_owned())]), None).unwrap();
        let access = Access::new(rules("one"));
        access.change(rules("one"));
        assert_eq!(access.now().number, 0);
        access.change(rules("two"));
        access.change(rules("one"));
        assert_eq!(access.now().number, 2);
    }

    #[test]
    fn nobody_has_an_empty_name_or_password() {
        let with = |users: &[(&str, &str)]| {
            Access::with(users.iter().map(|(name, password)| ((*name).to_owned(), (*password).to_owned())).collect(), None)
        };
        assert!(with(&[("ann", "secret")]).is_ok());
        for users in [&[][..], &[("ann", "")], &[("", "secret")], &[("ann", "secret"), ("bob", "")]] {
            assert!(with(users).is_err(), "{users:?}");
        }
    }
}
