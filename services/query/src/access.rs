//! Owns: who may connect to a server of SQL, and how a connection is encrypted.
//!
//! What must hold: no user has an empty name or an empty password.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;

use crate::failure::QueryError;

/// Who may connect, and how.
pub struct Access {
    /// Certificates; `None`: connections are not encrypted.
    pub tls: Option<Arc<ServerConfig>>,
    /// The password of each user; `None`: whoever reaches the server may use it, so it listens on a loopback address.
    pub passwords: Option<BTreeMap<String, String>>,
}

impl Access {
    /// For a loopback address: no encryption, no passwords.
    pub const fn open() -> Access {
        Access { tls: None, passwords: None }
    }

    /// For the users of `passwords`.
    ///
    /// # Errors
    /// There is no user, or one has no name or no password.
    pub fn with(passwords: BTreeMap<String, String>, tls: Option<Arc<ServerConfig>>) -> Result<Access, QueryError> {
        let refuse = |reason: String| Err(QueryError::Statement { reason });
        if passwords.is_empty() {
            return refuse("there is no user with a password".to_owned());
        }
        for (name, password) in &passwords {
            if name.is_empty() || password.is_empty() {
                return refuse(format!("user '{name}' has no {}", if name.is_empty() { "name" } else { "password" }));
            }
        }
        Ok(Access { tls, passwords: Some(passwords) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
