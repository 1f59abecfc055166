//! Owns: what every call passes: who makes it, and what a bug in it may do.
//!
//! What must hold: with passwords, no call but the login passes without a token. A panic ends one call.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo,
    SchemaResult, Ticket,
};
use futures::{FutureExt, Stream, StreamExt, stream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::actions;
use super::answers::{Messages, panicked};
use super::connection::Peer;
use super::service::{Caller, Calls};
use super::status::{read_only, status};
use super::tokens::{self, Tokens};
use crate::access::Access;
use crate::engine::Settings;
use crate::session::Session;

/// Time that a wrong password costs.
const REFUSAL: Duration = Duration::from_millis(500);
/// The header by which a call sets how far its statement reads.
pub const AT: &str = "tapestore-at";
/// The header by which a call sets at which record trades are known.
pub const AS_KNOWN_AT: &str = "tapestore-as-known-at";
/// The header with a call's token.
const AUTHORIZATION: &str = "authorization";

/// All calls of clients.
pub struct Front {
    calls: Calls,
    access: Arc<Access>,
    tokens: Tokens,
}

fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Status> {
    request.extensions().get::<Arc<Peer>>().cloned().ok_or_else(|| Status::internal("a call has no connection"))
}

/// The answer of `call`, or the status of its panic.
async fn guarded<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| Err(panicked()))
}

type Replies<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Front {
    /// Who may make `calls` is in `access`.
    pub fn new(calls: Calls, access: Arc<Access>) -> Front {
        Front { calls, access, tokens: Tokens::default() }
    }

    /// The settings `shared`, with those that a call carries; `None` if it carries none.
    fn own(&self, metadata: &MetadataMap, shared: Settings) -> Result<Option<Settings>, Status> {
        let mut session = Session::new(self.calls.engine().clone(), shared);
        let mut is_set = false;
        for (header, setting) in [(AT, "at"), (AS_KNOWN_AT, "as_known_at")] {
            let Some(value) = metadata.get(header) else { continue };
            session.set(setting, value.to_str().unwrap_or("")).map_err(status)?;
            is_set = true;
        }
        Ok(is_set.then(|| *session.settings()))
    }

    /// Admits `request`.
    fn admit<T>(&self, mut request: Request<T>) -> Result<Request<T>, Status> {
        let peer = peer(&request)?;
        let rules = self.access.now();
        let known = tokens::bearer(request.metadata()).and_then(|token| self.tokens.find(token, rules.number));
        let shared = match known {
            Some(shared) => shared,
            None if rules.passwords.is_none() => peer.settings.clone(),
            None => {
                return Err(Status::unauthenticated(
                    "this call needs a token: log in with a user and a password (Handshake with basic authentication)",
                ));
            }
        };
        let settings = *shared.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.own(request.metadata(), settings)?;
        peer.admit();
        request.extensions_mut().insert(Caller { shared, own, peer });
        Ok(request)
    }
}

#[tonic::async_trait]
impl FlightService for Front {
    type HandshakeStream = Replies<HandshakeResponse>;
    type ListFlightsStream = Replies<FlightInfo>;
    type DoGetStream = Messages;
    type DoPutStream = Replies<arrow_flight::PutResult>;
    type DoActionStream = Replies<arrow_flight::Result>;
    type ListActionsStream = Replies<ActionType>;
    type DoExchangeStream = Replies<FlightData>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        let peer = peer(&request)?;
        let rules = self.access.now();
        if let Some(passwords) = &rules.passwords
            && let Err(refused) = tokens::check(request.metadata(), passwords)
        {
            tokio::time::sleep(REFUSAL).await;
            return Err(refused);
        }
        let token = self.tokens.issue(rules.number)?;
        peer.admit();
        let header = format!("Bearer {token}").parse().map_err(|_| Status::internal("a token is no header"))?;
        let answer = HandshakeResponse { protocol_version: 0, payload: token.into() };
        let answers: Self::HandshakeStream = Box::pin(stream::iter([Ok(answer)]));
        let mut response = Response::new(answers);
        response.metadata_mut().insert(AUTHORIZATION, header);
        Ok(response)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        self.admit(request)?;
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        guarded(self.calls.get_flight_info(self.admit(request)?)).await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let info = guarded(self.calls.get_flight_info(self.admit(request)?)).await?.into_inner();
        Ok(Response::new(PollInfo { info: Some(info), flight_descriptor: None, progress: Some(1.0), expiration_time: None }))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let info = guarded(self.calls.get_flight_info(self.admit(request)?)).await?.into_inner();
        Ok(Response::new(SchemaResult { schema: info.schema }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Messages>, Status> {
        let response = guarded(self.calls.do_get(self.admit(request)?)).await?;
        Ok(response.map(|messages| -> Messages {
            let guarded = AssertUnwindSafe(messages).catch_unwind();
            Box::pin(guarded.map(|message| message.unwrap_or_else(|_| Err(panicked()))))
        }))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        guarded(self.calls.do_put(self.admit(request)?)).await
    }

    async fn do_exchange(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.admit(request)?;
        Err(read_only())
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let request = self.admit(request)?;
        let closes = request.get_ref().r#type == "CloseSession";
        let token = tokens::bearer(request.metadata()).filter(|_| closes).map(str::to_owned);
        let response = guarded(self.calls.do_action(request)).await?;
        if let Some(token) = token {
            self.tokens.end(&token, self.access.now().number);
        }
        Ok(response)
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.admit(request)?;
        let prepared = [
            ("CreatePreparedStatement", "Prepares a statement, with parameters as $1 or ?"),
            ("ClosePreparedStatement", "Closes a prepared statement"),
        ];
        let all = prepared.into_iter().chain(actions::ALL);
        let all = all.map(|(name, text)| Ok(ActionType { r#type: name.to_owned(), description: text.to_owned() }));
        Ok(Response::new(Box::pin(stream::iter(all))))
    }
}
