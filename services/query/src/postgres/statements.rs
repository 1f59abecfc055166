//! Owns: the statements of a client: texts of several, prepared ones, portals.
//!
//! What must hold: the rows of a statement are sent before the next one runs. What a client stores has limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Sink, SinkExt};
use pgwire::api::cancel::CancelHandler;
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{
    ExtendedQueryHandler, SimpleQueryHandler, send_execution_response, send_partial_query_response, send_query_response,
    send_ready_for_query,
};
use pgwire::api::results::{
    DescribePortalResponse, DescribeResponse, DescribeStatementResponse, FieldInfo, QueryResponse, Response, Tag,
};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, METADATA_USER, PgWireConnectionState, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Execute, Parse, ParseComplete, TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
use pgwire::messages::simplequery::Query;

use crate::engine::Settings;
use crate::postgres::Server;
use crate::postgres::codes;
use crate::postgres::commands::{self, Command, Values};
use crate::postgres::parameters;
use crate::postgres::rewrite;
use crate::postgres::rows;
use crate::session::{Reply, Session};

/// Statements and portals of a client, and the bytes of the statements.
const STATEMENTS_MAX: usize = 1024;
const PORTALS_MAX: usize = 256;
const STATEMENTS_BYTES: usize = 16 << 20;
/// Bytes of a text of statements: the parser's work grows with it.
const TEXT_MAX: usize = 1 << 20;

/// A statement that is prepared.
#[derive(Debug)]
pub(super) struct Prepared {
    sql: String,
    command: Option<Command>,
    schema: SchemaRef,
    parameters: Vec<Option<DataType>>,
}

/// What a client has stored.
#[derive(Debug, Default)]
struct Held {
    /// Bytes of statements, by their names.
    statements: BTreeMap<String, usize>,
    portals: BTreeSet<String>,
}

/// What came of a statement.
enum Outcome {
    Rows(SchemaRef, SendableRecordBatchStream),
    Done(&'static str),
    Begun,
    Ended(&'static str),
}

/// The statements of a client that has logged in.
pub(super) struct Statements {
    state: Arc<State>,
    parser: Arc<Parser>,
    held: Mutex<Held>,
}

impl Statements {
    /// Of a client of `server`.
    pub(super) fn new(server: Arc<Server>) -> Statements {
        let session = Session::new(server.engine.clone(), Settings::default());
        let state = Arc::new(State { server, session: tokio::sync::Mutex::new(session), values: Mutex::default() });
        Statements { parser: Arc::new(Parser(state.clone())), state, held: Mutex::default() }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Portals are gone.
    pub(super) fn forget_portals(&self) {
        self.held().portals.clear();
    }
}

/// What the statements of a client share.
struct State {
    server: Arc<Server>,
    session: tokio::sync::Mutex<Session>,
    values: Mutex<Values>,
}

impl State {
    fn values(&self) -> std::sync::MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `sql` without what clients ask about the catalog in words that the engine does not have.
    async fn rewritten(&self, sql: &str, client: &(impl ClientInfo + ?Sized)) -> PgWireResult<String> {
        if !rewrite::concerns(sql) {
            return Ok(sql.to_owned());
        }
        let settings = *self.session.lock().await.settings();
        let moment = self.server.engine.moment(&settings).map_err(codes::failure)?;
        let user = client.metadata().get(METADATA_USER).map_or("tapestore", String::as_str);
        let values = self.values().clone();
        Ok(rewrite::rewritten(sql, &rewrite::Known { user, values: &values, moment: &moment }).unwrap_or_else(|| sql.to_owned()))
    }

    async fn run(&self, sql: &str, command: Option<&Command>, values: Vec<ScalarValue>) -> PgWireResult<Outcome> {
        let sql = match command {
            Some(Command::Begin) => return Ok(Outcome::Begun),
            Some(Command::Commit) => return Ok(Outcome::Ended("COMMIT")),
            Some(Command::Rollback) => return Ok(Outcome::Ended("ROLLBACK")),
            Some(Command::Nothing(tag)) => return Ok(Outcome::Done(tag)),
            Some(Command::Changes) => {
                return Err(codes::error("25006", "statements only read: records are published by programs"));
            }
            Some(Command::Absent(what)) => return Err(codes::error("0A000", format!("not supported: {what}"))),
            Some(Command::Set { name, value }) => {
                self.values().set(name, value.as_deref())?;
                return Ok(Outcome::Done("SET"));
            }
            Some(Command::Show(name)) => {
                let schema = shown(name);
                let value = self.values().get(name).unwrap_or_default();
                let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(StringArray::from(vec![value]))]);
                let rows = futures::stream::once(async move { batch.map_err(Into::into) });
                return Ok(Outcome::Rows(schema.clone(), Box::pin(RecordBatchStreamAdapter::new(schema, rows))));
            }
            Some(Command::Session(sql)) => sql,
            None => sql,
        };
        match self.session.lock().await.run(sql, values).await.map_err(codes::failure)? {
            Reply::Rows(answer) => Ok(Outcome::Rows(answer.schema, answer.rows)),
            Reply::Done(tag) => Ok(Outcome::Done(tag)),
        }
    }

    fn response(&self, schema: &Arc<Schema>, fields: Vec<FieldInfo>, answer: SendableRecordBatchStream) -> QueryResponse {
        let rows = rows::rows(answer, schema.clone(), &fields, self.server.options.rows_in_flight);
        QueryResponse::new(Arc::new(fields), rows)
    }

    /// Answers one statement of a text.
    async fn simple<C>(&self, client: &mut C, sql: &str) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
        C::Error: Debug,
    {
        let command = commands::command(sql)?;
        allowed(client.transaction_status(), command.as_ref())?;
        let sql = if command.is_none() { self.rewritten(sql, client).await? } else { sql.to_owned() };
        match self.run(&sql, command.as_ref(), Vec::new()).await? {
            Outcome::Rows(schema, answer) => {
                let fields = rows::fields(&schema, &Format::UnifiedText)?;
                send_query_response(client, self.response(&schema, fields, answer), true).await
            }
            outcome => finished(client, outcome).await,
        }
    }
}

impl State {
    /// Begins the statement of a portal; returns its rows, if it has some.
    async fn begin<C>(&self, client: &mut C, portal: &Portal<Arc<Prepared>>) -> PgWireResult<Option<QueryResponse>>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
        C::Error: Debug,
    {
        let prepared = &portal.statement.statement;
        allowed(client.transaction_status(), prepared.command.as_ref())?;
        let values = parameters::values(portal, &prepared.parameters)?;
        match self.run(&prepared.sql, prepared.command.as_ref(), values).await? {
            Outcome::Rows(_, answer) => {
                // As it was described: a client reads by that.
                let fields = rows::fields(&prepared.schema, &portal.result_column_format)?;
                Ok(Some(self.response(&prepared.schema, fields, answer)))
            }
            outcome => {
                finished(client, outcome).await?;
                Ok(None)
            }
        }
    }
}

fn shown(name: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, false)]))
}

/// Whether a statement may run: after an error in a transaction only its end may.
fn allowed(status: TransactionStatus, command: Option<&Command>) -> PgWireResult<()> {
    match (status, command) {
        (TransactionStatus::Error, Some(Command::Commit | Command::Rollback | Command::Nothing("ROLLBACK"))) => Ok(()),
        (TransactionStatus::Error, _) => {
            Err(codes::error("25P02", "the transaction has failed: statements are ignored until it ends; send ROLLBACK"))
        }
        _ => Ok(()),
    }
}

/// The message that a statement without rows is done.
async fn finished<C>(client: &mut C, outcome: Outcome) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    C::Error: Debug,
{
    let tag = match outcome {
        Outcome::Rows(..) => return Ok(()),
        Outcome::Done(tag) => {
            if tag == "ROLLBACK" {
                client.set_transaction_status(TransactionStatus::Transaction);
            }
            tag
        }
        Outcome::Begun => {
            client.set_transaction_status(TransactionStatus::Transaction);
            "BEGIN"
        }
        Outcome::Ended(tag) => {
            let has_failed = matches!(client.transaction_status(), TransactionStatus::Error);
            client.set_transaction_status(TransactionStatus::Idle);
            if has_failed { "ROLLBACK" } else { tag }
        }
    };
    send_execution_response(client, Tag::new(tag)).await
}

#[async_trait]
impl CancelHandler for Statements {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let key = (request.pid, request.secret_key.to_bytes());
        let found = self.state.server.running().get(&key).cloned();
        if let Some(running) = found {
            // Only a statement that runs now is cancelled.
            running.notify_waiters();
        }
    }
}

#[async_trait]
impl SimpleQueryHandler for Statements {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        client.set_state(PgWireConnectionState::QueryInProgress);
        let parts = commands::split(checked(&query.query)?)?;
        if parts.is_empty() {
            client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
        }
        for sql in &parts {
            self.state.simple(client, sql).await?;
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        send_ready_for_query(client, client.transaction_status()).await
    }

    async fn do_query<C>(&self, _client: &mut C, _query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        // `on_query` sends the rows of each statement before it runs the next.
        Ok(Vec::new())
    }
}

fn checked(text: &str) -> PgWireResult<&str> {
    if text.len() > TEXT_MAX {
        return Err(codes::error("54000", format!("a text of statements has at most {TEXT_MAX} bytes")));
    }
    Ok(text)
}

/// Prepares statements.
pub(super) struct Parser(Arc<State>);

#[async_trait]
impl QueryParser for Parser {
    type Statement = Arc<Prepared>;

    async fn parse_sql<C>(&self, client: &C, sql: &str, types: &[Option<Type>]) -> PgWireResult<Option<Arc<Prepared>>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut parts = commands::split(checked(sql)?)?;
        let Some(sql) = parts.pop() else { return Ok(None) };
        if !parts.is_empty() {
            return Err(codes::error("42601", "a prepared statement is one statement"));
        }
        let command = commands::command(&sql)?;
        allowed(client.transaction_status(), command.as_ref())?;
        if let Some(command) = command {
            let schema = match &command {
                Command::Show(name) => shown(name),
                _ => Arc::new(Schema::empty()),
            };
            return Ok(Some(Arc::new(Prepared { sql, command: Some(command), schema, parameters: Vec::new() })));
        }
        let mut sql = self.0.rewritten(&sql, client).await?;
        let session = self.0.session.lock().await;
        let mut described = session.describe(&sql).await.map_err(codes::failure)?;
        let untyped = |of: &Option<DataType>| matches!(of, None | Some(DataType::Null));
        if described.parameters.iter().any(untyped) {
            // The statement leaves a type open: the client knows it.
            let names = described.parameters.iter().enumerate().map(|(at, of)| {
                let of = types.get(at).and_then(Option::as_ref).filter(|_| untyped(of))?;
                parameters::name_of(of)
            });
            sql = rewrite::typed(&sql, &names.collect::<Vec<_>>())?;
            described = session.describe(&sql).await.map_err(codes::failure)?;
        }
        Ok(Some(Arc::new(Prepared { sql, command: None, schema: described.schema, parameters: described.parameters })))
    }

    fn get_parameter_types(&self, statement: &Arc<Prepared>) -> PgWireResult<Vec<Type>> {
        Ok(parameters::described(&statement.parameters))
    }

    fn get_result_schema(&self, statement: &Arc<Prepared>, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        rows::fields(&statement.schema, format.unwrap_or(&Format::UnifiedText))
    }
}

#[async_trait]
impl ExtendedQueryHandler for Statements {
    type Statement = Arc<Prepared>;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        self.parser.clone()
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let bytes = name.len() + checked(&message.query)?.len();
        {
            let mut held = self.held();
            let others: usize = held.statements.iter().filter(|(other, _)| **other != name).map(|(_, bytes)| bytes).sum();
            if held.statements.len() >= STATEMENTS_MAX || others + bytes > STATEMENTS_BYTES {
                return Err(codes::error("53400", "the client has prepared too many statements: close some"));
            }
            held.statements.insert(name.clone(), bytes);
        }
        match StoredStatement::parse(client, &message, self.query_parser()).await? {
            Some(statement) => client.portal_store().put_statement(Arc::new(statement)),
            None => client.portal_store().put_empty_statement(&name),
        }
        client.feed(PgWireBackendMessage::ParseComplete(ParseComplete::new())).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.portal_name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        {
            let mut held = self.held();
            held.portals.insert(name.clone());
            if held.portals.len() > PORTALS_MAX {
                held.portals.remove(&name);
                return Err(codes::error("53400", "the client has too many portals: close some"));
            }
        }
        let statement = message.statement_name.as_deref().unwrap_or(DEFAULT_NAME);
        match client.portal_store().get_statement(statement) {
            Some(Entry::Value(statement)) => {
                let portal = Portal::try_new(&message, statement)?;
                // A wrong value is an error now.
                parameters::values(&portal, &portal.statement.statement.parameters)?;
                rows::fields(&portal.statement.statement.schema, &portal.result_column_format)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Some(Entry::Empty) if message.parameters.is_empty() => client.portal_store().put_empty_portal(&name),
            Some(Entry::Empty) => return Err(codes::error("08P01", "an empty statement has no parameters")),
            None => return Err(PgWireError::StatementNotFound(statement.to_owned())),
        }
        client.feed(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
                return Ok(());
            }
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        };
        client.set_state(PgWireConnectionState::QueryInProgress);
        // Taken out: what is dropped before its end is not begun again.
        let state = portal.state();
        let taken = std::mem::replace(&mut *state.lock().await, PortalExecutionState::Finished);
        let response = match taken {
            PortalExecutionState::Initial => self.state.begin(client, &portal).await?,
            PortalExecutionState::Suspended(response) => Some(response),
            PortalExecutionState::Finished => {
                send_execution_response(client, Tag::new("SELECT").with_rows(0)).await?;
                None
            }
        };
        if let Some(mut response) = response {
            let most = usize::try_from(message.max_rows).unwrap_or(0);
            if send_partial_query_response(client, &mut response, most).await? {
                *state.lock().await = PortalExecutionState::Suspended(response);
            }
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                client.portal_store().rm_statement(name);
                self.held().statements.remove(name);
            }
            TARGET_TYPE_BYTE_PORTAL => {
                client.portal_store().rm_portal(name);
                self.held().portals.remove(name);
            }
            other => return Err(PgWireError::InvalidTargetType(other)),
        }
        client.feed(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
    }

    async fn do_describe_statement<C>(
        &self,
        _client: &mut C,
        target: &StoredStatement<Self::Statement>,
    ) -> PgWireResult<DescribeStatementResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let described = parameters::described(&target.statement.parameters).into_iter().enumerate();
        let types = described.map(|(at, described)| {
            target.parameter_types.get(at).cloned().flatten().filter(|of| *of != Type::UNKNOWN).unwrap_or(described)
        });
        if target.statement.schema.fields().is_empty() {
            return Ok(DescribeStatementResponse::new(types.collect(), Vec::new()));
        }
        Ok(DescribeStatementResponse::new(types.collect(), rows::fields(&target.statement.schema, &Format::UnifiedText)?))
    }

    async fn do_describe_portal<C>(
        &self,
        _client: &mut C,
        target: &Portal<Self::Statement>,
    ) -> PgWireResult<DescribePortalResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if target.statement.statement.schema.fields().is_empty() {
            return Ok(DescribePortalResponse::no_data());
        }
        Ok(DescribePortalResponse::new(rows::fields(&target.statement.statement.schema, &target.result_column_format)?))
    }

    async fn do_query<C>(&self, _client: &mut C, _portal: &Portal<Self::Statement>, _max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        // `on_execute` does it.
        Ok(Response::EmptyQuery)
    }
}
