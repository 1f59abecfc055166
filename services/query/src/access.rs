//! Owns: who may connect to a server of SQL, and whether the connection is encrypted.
//!
//! What must hold: no user has an empty name or an empty password.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;

use crate::failure::QueryError;

/// Who may connect.
pub struct Access {
    /// The certificate and the protocols of TLS; `None`: connections are not encrypted.
    pub tls: Option<Arc<ServerConfig>>,
    /// The passwords by the users' names; `None`: everybody may connect. For loopback alone.
    pub passwords: Option<BTreeMap<String, String>>,
}

impl Access {
    /// Everybody may connect, without TLS.
    pub fn open() -> Access {
        Access { tls: None, passwords: None }
    }

    /// Users connect with their passwords.
    ///
    /// # Errors
    /// There is no user, or a name or a password is empty.
    pub fn with(passwords: BTreeMap<String, String>, tls: Option<Arc<ServerConfig>>) -> Result<Access, QueryError> {
        let wrong = |reason: String| Err(QueryError::Statement { reason });
        if passwords.is_empty() {
            return wrong("passwords are asked for, but there is no user".to_owned());
        }
        if passwords.keys().any(String::is_empty) {
            return wrong("a user has an empty name".to_owned());
        }
        if let Some((name, _)) = passwords.iter().find(|(_, password)| password.is_empty()) {
            return wrong(format!("the password of user '{name}' is empty"));
        }
        Ok(Access { tls, passwords: Some(passwords) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_and_empty_names_and_empty_passwords_are_refused() {
        let with = |pairs: &[(&str, &str)]| {
            Access::with(pairs.iter().map(|(name, password)| ((*name).to_owned(), (*password).to_owned())).collect(), None)
        };
        assert!(with(&[]).is_err());
        assert!(with(&[("", "secret")]).is_err());
        assert!(with(&[("ann", "secret"), ("bob", "")]).is_err());
        assert!(with(&[("ann", "secret")]).is_ok());
    }
}
