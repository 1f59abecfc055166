//! Owns: SCRAM-SHA-256 (RFC 5802, 7677), the server's side: a client proves that it has the password, which is not sent.
//!
//! ```text
//! client  n,,n=,r=NONCE
//! server  r=NONCE MORE,s=SALT,i=4096
//! client  c=biws,r=NONCE MORE,p=PROOF
//! server  v=SIGNATURE
//! ```
//!
//! What must hold: without the password there is no proof; an exchange that was overheard does not help. Any bytes are an error
//! or a proof, never a panic.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// The name of the mechanism.
pub(super) const MECHANISM: &str = "SCRAM-SHA-256";
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

/// Why a client is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refused {
    /// The message is none of SCRAM.
    #[error("this is no message of SCRAM-SHA-256")]
    Malformed,
    /// The proof is wrong.
    #[error("the password is wrong, or there is no such user")]
    Wrong,
    /// There are no random numbers.
    #[error("the system has no random numbers")]
    NoRandom,
}

/// Waits for the proof.
pub(super) struct Exchange {
    password: String,
    salt: [u8; 16],
    nonce: String,
    /// The header of the client's first message, as it has to come again.
    header: String,
    /// Both first messages.
    messages: String,
}

/// Random bytes as text.
///
/// # Errors
/// The system has none.
pub(super) fn random() -> Result<String, Refused> {
    let mut bytes = [0; 18];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Refused::NoRandom)?;
    Ok(STANDARD.encode(bytes))
}

impl Exchange {
    /// Answers the client's first message; returns also what is sent to it.
    ///
    /// # Errors
    /// The message is malformed.
    pub(super) fn begin(password: String, first: &[u8]) -> Result<(Exchange, String), Refused> {
        let first = std::str::from_utf8(first).map_err(|_| Refused::Malformed)?;
        // No channel binding: it is not offered.
        let bare = first.strip_prefix("n,").or_else(|| first.strip_prefix("y,")).ok_or(Refused::Malformed)?;
        let (_identity, bare) = bare.split_once(',').ok_or(Refused::Malformed)?;
        let header = first.strip_suffix(bare).ok_or(Refused::Malformed)?.to_owned();
        let theirs = bare.split(',').find_map(|part| part.strip_prefix("r=")).filter(|nonce| !nonce.is_empty());
        let nonce = format!("{}{}", theirs.ok_or(Refused::Malformed)?, random()?);
        let mut salt = [0; 16];
        SystemRandom::new().fill(&mut salt).map_err(|_| Refused::NoRandom)?;
        let answer = format!("r={nonce},s={},i={ITERATIONS}", STANDARD.encode(salt));
        let messages = format!("{bare},{answer}");
        Ok((Exchange { password, salt, nonce, header, messages }, answer))
    }

    /// Checks the client's proof; returns what is sent to it.
    ///
    /// # Errors
    /// The proof is wrong, or the message is malformed.
    pub(super) fn end(&self, last: &[u8]) -> Result<String, Refused> {
        let last = std::str::from_utf8(last).map_err(|_| Refused::Malformed)?;
        let (unproved, proof) = last.rsplit_once(",p=").ok_or(Refused::Malformed)?;
        let proof = STANDARD.decode(proof).map_err(|_| Refused::Malformed)?;
        let mut parts = unproved.split(',');
        let header = parts.next().and_then(|part| part.strip_prefix("c=")).ok_or(Refused::Malformed)?;
        let nonce = parts.next().and_then(|part| part.strip_prefix("r=")).ok_or(Refused::Malformed)?;
        if header != STANDARD.encode(&self.header) || nonce != self.nonce || proof.len() != digest::SHA256_OUTPUT_LEN {
            return Err(Refused::Malformed);
        }
        let password = stringprep::saslprep(&self.password).unwrap_or(self.password.as_str().into());
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &self.salt, password.as_bytes(), &mut salted);
        let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let messages = format!("{},{unproved}", self.messages);
        let stored = digest::digest(&digest::SHA256, sign(&salted, b"Client Key").as_ref());
        let signature = sign(stored.as_ref(), messages.as_bytes());
        let key: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(proof, signature)| proof ^ signature).collect();
        let is_same = digest::digest(&digest::SHA256, &key)
            .as_ref()
            .iter()
            .zip(stored.as_ref())
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0;
        if !is_same {
            return Err(Refused::Wrong);
        }
        let server = sign(&salted, b"Server Key");
        Ok(format!("v={}", STANDARD.encode(sign(server.as_ref(), messages.as_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7677_is_accepted() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let exchange = Exchange {
            password: "pencil".to_owned(),
            salt: salt.try_into().unwrap(),
            nonce: nonce.to_owned(),
            header: "n,,".to_owned(),
            messages: format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
        };
        let last = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(exchange.end(last.as_bytes()).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let wrong = format!("c=biws,r={nonce},p=eHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(exchange.end(wrong.as_bytes()), Err(Refused::Wrong));
        for malformed in
            ["", ",p=", "c=biws,p=AA==", "c=biws,r=x,p=AA==", "c=eSws,r=x,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="]
        {
            assert_eq!(exchange.end(malformed.as_bytes()), Err(Refused::Malformed), "{malformed}");
        }
    }

    #[test]
    fn a_first_message_without_a_nonce_or_with_channel_binding_is_malformed() {
        for first in ["", "n", "n,,", "n,,n=ann,r=", "p=tls-unique,,n=ann,r=abc", "x,,n=ann,r=abc"] {
            assert!(Exchange::begin("secret".to_owned(), first.as_bytes()).is_err(), "{first}");
        }
        let (exchange, answer) = Exchange::begin("secret".to_owned(), b"n,,n=ann,r=abc").unwrap();
        assert!(answer.starts_with("r=abc") && exchange.nonce.len() > 20);
    }
}
