//! Owns: the begin of a connection: TLS, the user and the password, a place among the clients, the parameters of the server.
//!
//! What must hold: where there are passwords, nobody is accepted without one: SCRAM-SHA-256, and a user that does not exist looks
//! like one with another password. Where there is TLS, nobody is accepted without it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt};
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation, save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, METADATA_USER, PgWireConnectionState, PidSecretKeyGenerator};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::startup::{Authentication, SecretKey};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_rustls::TlsAcceptor;

use crate::access::Access;
use crate::postgres::Server;
use crate::postgres::codes;
use crate::postgres::commands;
use crate::postgres::scram::{self, Exchange, Refused};

/// A client's bytes, encrypted or not.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for T {}

/// A connection whose encryption is settled.
pub(super) struct Opened {
    /// Its bytes.
    pub wire: Box<dyn Wire>,
    /// What was read of the first message.
    pub read: BytesMut,
    /// Whether it is encrypted.
    pub is_secure: bool,
}

/// Settles whether the connection `socket` is encrypted: a client may ask for it before its first message.
///
/// # Errors
/// The client goes away, asks for ever, or its TLS is not ours.
pub(super) async fn open(mut socket: TcpStream, access: &Access) -> io::Result<Opened> {
    const TLS: u32 = 80_877_103;
    const GSS: u32 = 80_877_104;
    socket.set_nodelay(true)?;
    for _ in 0..4 {
        let (len, code) = (socket.read_u32().await?, socket.read_u32().await?);
        match (len, code) {
            (8, TLS) => {
                if let Some(tls) = &access.now().tls {
                    socket.write_all(b"S").await?;
                    let wire = TlsAcceptor::from(tls.clone()).accept(socket).await?;
                    return Ok(Opened { wire: Box::new(wire), read: BytesMut::new(), is_secure: true });
                }
                socket.write_all(b"N").await?;
            }
            (8, GSS) => socket.write_all(b"N").await?,
            _ => {
                let mut read = BytesMut::new();
                read.put_u32(len);
                read.put_u32(code);
                return Ok(Opened { wire: Box::new(socket), read, is_secure: false });
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the client asks for encryption again and again"))
}

/// How a client logs in.
pub(super) struct Login {
    server: Arc<Server>,
    identity: Arc<Identity>,
    exchange: Mutex<Option<Exchange>>,
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

fn refused(refused: &Refused) -> PgWireError {
    let code = match refused {
        Refused::Malformed => "08P01",
        Refused::Wrong => "28P01",
        Refused::NoRandom => "XX000",
    };
    codes::fatal(code, refused.to_string())
}

impl Login {
    /// How a client of `server` logs in, who is then `identity`.
    pub(super) fn new(server: Arc<Server>, identity: Arc<Identity>) -> Login {
        Login { server, identity, exchange: Mutex::default(), place: Mutex::default() }
    }

    async fn accept<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        // Who has not proved itself takes no place from those who have.
        let Ok(place) = self.server.places.clone().try_acquire_owned() else {
            let most = self.server.options.connections;
            return Err(codes::fatal("53300", format!("there are {most} clients already, the most at once")));
        };
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        let (number, secret) = self.identity.generate(client);
        client.set_pid_and_secret_key(number, secret);
        finish_authentication(client, &Parameters).await
    }

    /// The password of the client's user. A user that does not exist has one that nobody knows.
    fn password(&self, client: &impl ClientInfo) -> Result<String, Refused> {
        let rules = self.server.access.now();
        let user = client.metadata().get(METADATA_USER);
        user.and_then(|user| rules.passwords.as_ref()?.get(user)).cloned().map_or_else(scram::random, Ok)
    }

    /// Answers one message of SCRAM; returns whether the client has proved itself.
    fn prove(&self, client: &impl ClientInfo, message: PgWireFrontendMessage) -> PgWireResult<(Authentication, bool)> {
        let PgWireFrontendMessage::PasswordMessageFamily(message) = message else {
            return Err(codes::fatal("08P01", "the client has sent something else than its proof"));
        };
        let begun = self.exchange.lock().unwrap_or_else(PoisonError::into_inner).take();
        match begun {
            None => {
                let first = message.into_sasl_initial_response()?;
                if first.auth_method != scram::MECHANISM {
                    return Err(codes::fatal("28000", format!("there is {}, not {}", scram::MECHANISM, first.auth_method)));
                }
                let password = self.password(client).map_err(|error| refused(&error))?;
                let begun = Exchange::begin(password, first.data.as_deref().unwrap_or_default());
                let (exchange, answer) = begun.map_err(|error| refused(&error))?;
                *self.exchange.lock().unwrap_or_else(PoisonError::into_inner) = Some(exchange);
                Ok((Authentication::SASLContinue(answer.into()), false))
            }
            Some(exchange) => {
                let last = message.into_sasl_response()?;
                let answer = exchange.end(&last.data).map_err(|error| refused(&error))?;
                Ok((Authentication::SASLFinal(answer.into()), true))
            }
        }
    }
}

#[async_trait]
impl StartupHandler for Login {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let PgWireFrontendMessage::Startup(startup) = &message else {
            if !matches!(client.state(), PgWireConnectionState::AuthenticationInProgress) {
                return Err(codes::fatal("08P01", "the client has not begun with a startup message"));
            }
            let (answer, is_proved) = self.prove(client, message)?;
            client.send(PgWireBackendMessage::Authentication(answer)).await?;
            return if is_proved { self.accept(client).await } else { Ok(()) };
        };
        let rules = self.server.access.now();
        if rules.tls.is_some() && !client.is_secure() {
            return Err(codes::fatal("28000", "the server needs TLS: set sslmode=require"));
        }
        protocol_negotiation(client, startup).await?;
        save_startup_parameters_to_metadata(client, startup);
        if rules.passwords.is_none() {
            return self.accept(client).await;
        }
        client.set_state(PgWireConnectionState::AuthenticationInProgress);
        let mechanisms = vec![scram::MECHANISM.to_owned()];
        client.send(PgWireBackendMessage::Authentication(Authentication::SASL(mechanisms))).await?;
        Ok(())
    }
}

/// What clients get to know of the server.
struct Parameters;

impl ServerParameterProvider for Parameters {
    fn server_parameters<C: ClientInfo>(&self, client: &C) -> Option<HashMap<String, String>> {
        let values = commands::Values::default();
        let names = [
            "server_version",
            "server_encoding",
            "client_encoding",
            "DateStyle",
            "TimeZone",
            "IntervalStyle",
            "integer_datetimes",
            "standard_conforming_strings",
            "is_superuser",
            "in_hot_standby",
            "default_transaction_read_only",
            "search_path",
        ];
        let mut all: HashMap<String, String> =
            names.iter().filter_map(|name| Some(((*name).to_owned(), values.get(name)?))).collect();
        for (name, from) in [("application_name", "application_name"), ("session_authorization", "user")] {
            all.insert(name.to_owned(), client.metadata().get(from).cloned().unwrap_or_default());
        }
        Some(all)
    }
}

/// The number and the secret by which a connection's statements are cancelled.
pub(super) struct Identity {
    server: Arc<Server>,
    /// Notified when the statement is to be cancelled.
    pub cancelled: Arc<Notify>,
    key: Mutex<Option<(i32, Bytes)>>,
}

impl Identity {
    /// Of a connection that has none yet.
    pub(super) fn new(server: Arc<Server>) -> Identity {
        Identity { server, cancelled: Arc::new(Notify::new()), key: Mutex::new(None) }
    }
}

impl PidSecretKeyGenerator for Identity {
    fn generate(&self, client: &dyn ClientInfo) -> (i32, SecretKey) {
        let (number, secret) = self.server.ids.generate(client);
        let key = (number, secret.to_bytes());
        self.server.running().insert(key.clone(), self.cancelled.clone());
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        (number, secret)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some(key) = self.key.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.server.running().remove(&key);
        }
    }
}
