//! Owns: logins: passwords, and the tokens that calls carry after them.
//!
//! What must hold: a token is 128 random bits beside its number, and is compared in constant time. Tokens are bounded: the one
//! that was not used for the longest time goes first, and each after `IDLE` without a call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::random::random;
use crate::access;
use crate::engine::Settings;

/// Most tokens.
const TOKENS_MAX: usize = 1024;
/// A token ends when it was not used for so long.
const IDLE: Duration = Duration::from_secs(12 * 3600);

/// The settings of a client, which its calls share.
pub type Shared = Arc<Mutex<Settings>>;

struct Token {
    secret: u128,
    /// The number of the rules that it was issued by.
    rules: u64,
    settings: Shared,
    used: Instant,
}

/// The tokens of a server.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<u64, Token>>);

impl Tokens {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new token of a login by the passwords with `rules`, the number of the rules.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn issue(&self, rules: u64) -> Result<String, Status> {
        let secret = u128::from_le_bytes(random()?);
        let number = u64::from_le_bytes(random()?);
        let mut tokens = self.lock();
        tokens.retain(|_, token| token.used.elapsed() < IDLE);
        if tokens.len() >= TOKENS_MAX
            && let Some(oldest) = tokens.iter().min_by_key(|(_, token)| token.used).map(|(number, _)| *number)
        {
            tokens.remove(&oldest);
        }
        tokens.insert(number, Token { secret, rules, settings: Shared::default(), used: Instant::now() });
        Ok(format!("{number:016x}{secret:032x}"))
    }

    /// The settings of the client with the token `text`, while the rules have the number `rules`.
    pub fn find(&self, text: &str, rules: u64) -> Option<Shared> {
        let (number, secret) = parsed(text)?;
        let mut tokens = self.lock();
        let token = tokens.get_mut(&number)?;
        let is_it = bool::from(token.secret.to_le_bytes().ct_eq(&secret.to_le_bytes()));
        if !is_it || token.rules != rules || token.used.elapsed() >= IDLE {
            return None;
        }
        token.used = Instant::now();
        Some(token.settings.clone())
    }

    /// Ends the token `text`; whether it was one.
    pub fn end(&self, text: &str, rules: u64) -> bool {
        self.find(text, rules).is_some() && parsed(text).is_some_and(|(number, _)| self.lock().remove(&number).is_some())
    }
}

fn parsed(text: &str) -> Option<(u64, u128)> {
    let (number, secret) = text.split_at_checked(16)?;
    let is_hex = text.len() == 48 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| Some((u64::from_str_radix(number, 16).ok()?, u128::from_str_radix(secret, 16).ok()?)))?
}

fn login(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("authorization")?.to_str().ok()
}

/// The token that a call carries.
pub fn bearer(metadata: &MetadataMap) -> Option<&str> {
    access::credentials(login(metadata)?, "bearer")
}

/// Checks the name and the password that a login carries.
///
/// # Errors
/// They are not of one of the users.
pub fn check(metadata: &MetadataMap, passwords: &BTreeMap<String, String>) -> Result<(), Status> {
    access::check(login(metadata), passwords).map_err(Status::unauthenticated)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    #[test]
    fn a_token_that_is_changed_anywhere_is_none() {
        let tokens = Tokens::default();
        let token = tokens.issue(0).unwrap();
        assert!(tokens.find(&token, 0).is_some());
        for at in 0..token.len() {
            let other = if token.as_bytes()[at] == b'0' { "1" } else { "0" };
            let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
            assert!(tokens.find(&changed, 0).is_none(), "{at}");
        }
        for wrong in ["", "\u{e9}", &token[1..], &format!("{token}0"), &"+".repeat(48)] {
            assert!(tokens.find(wrong, 0).is_none());
        }
        assert!(tokens.end(&token, 0) && tokens.find(&token, 0).is_none());
    }

    #[test]
    fn a_token_is_void_when_the_passwords_have_changed() {
        let tokens = Tokens::default();
        let (token, later) = (tokens.issue(3).unwrap(), tokens.issue(4).unwrap());
        assert!(tokens.find(&token, 3).is_some() && tokens.find(&token, 4).is_none());
        assert!(tokens.find(&later, 4).is_some() && tokens.find(&later, 3).is_none());
    }

    #[test]
    fn tokens_are_bounded_and_the_oldest_goes_first() {
        let tokens = Tokens::default();
        let first = tokens.issue(0).unwrap();
        let second = tokens.issue(0).unwrap();
        (2..TOKENS_MAX).for_each(|_| drop(tokens.issue(0).unwrap()));
        assert!(tokens.find(&first, 0).is_some());
        let last = tokens.issue(0).unwrap();
        assert_eq!(tokens.lock().len(), TOKENS_MAX);
        assert!(tokens.find(&second, 0).is_none() && tokens.find(&first, 0).is_some() && tokens.find(&last, 0).is_some());
    }

    #[test]
    fn a_login_needs_the_name_and_the_password_of_one_user() {
        let passwords = BTreeMap::from([("ann".to_owned(), "a:b".to_owned())]);
        let checked = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().unwrap());
            check(&metadata, &passwords).is_ok()
        };
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert!(checked(&basic("ann:a:b")));
        for wrong in ["ann:a", "ann:", "bob:", "bob:a:b", ":", "ann"] {
            assert!(!checked(&basic(wrong)), "{wrong}");
        }
        assert!(!checked("Basic ???") && !checked("Bearer x") && !checked("Basic"));
    }
}
