//! Owns: the calls of Flight SQL, of clients that may make them.
//!
//! What must hold: a ticket is answered as of the moment it is executed, under the settings of the call that made it. Nothing
//! is changed but settings of the client's own session.

use std::sync::{Arc, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any,
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
    CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{Action, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, SchemaAsIpc, Ticket};
use bytes::Bytes;
use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::answers::{self, Bounds, Messages};
use super::connection::Peer;
use super::statements::{Of, Statement, Statements};
use super::status::{read_only, status, wrong};
use super::tables::{self, SystemTables};
use super::tokens::Shared;
use super::{actions, parameters, placeholders};
use crate::engine::{Engine, Settings};
use crate::session::{Reply, Session};
use crate::updates::{self, Updates};

/// Most bytes of a statement.
const SQL_MAX: usize = 256 << 10;
/// Most answers that are sent at a time.
const ANSWERS_MAX: usize = 128;
/// The header with the last LSN of the snapshot that an answer is of.
pub const LSN: &str = "tapestore-lsn";

/// Who makes a call.
#[derive(Clone)]
pub struct Caller {
    /// The settings of the client's session.
    pub shared: Shared,
    /// The settings that the call carries.
    pub own: Option<Settings>,
    /// The connection.
    pub peer: Arc<Peer>,
}

impl Caller {
    /// The caller of `request`.
    ///
    /// # Errors
    /// Nobody has checked who it is.
    pub fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        request.extensions().get().cloned().ok_or_else(|| Status::internal("a call has no caller"))
    }

    /// The settings of the call.
    pub fn settings(&self) -> Settings {
        self.own.unwrap_or_else(|| self.of_session())
    }

    /// The settings of the session, without those that the call carries.
    pub fn of_session(&self) -> Settings {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the settings of the session.
    pub fn set(&self, settings: Settings) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }
}

/// The calls of Flight SQL.
pub struct Calls {
    engine: Arc<Engine>,
    statements: Statements,
    answers: Arc<Semaphore>,
    system: SystemTables,
    abilities: SqlInfoData,
    types: XdbcTypeInfoData,
}

type Answered = Result<Response<Messages>, Status>;
type Info = Result<Response<FlightInfo>, Status>;

/// An answer that is made already, or why there is none.
fn ready(batch: arrow_flight::error::Result<RecordBatch>) -> Answered {
    Ok(Response::new(answers::ready(batch.map_err(|error| wrong(error.to_string()))?)))
}

/// What a client fetches with `ticket`.
fn info(ticket: Bytes, schema: Option<&Schema>, request: Request<FlightDescriptor>) -> Info {
    let mut info = FlightInfo::new()
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket { ticket }))
        .with_descriptor(request.into_inner())
        .with_total_records(-1)
        .with_total_bytes(-1)
        .with_ordered(true);
    if let Some(schema) = schema {
        info = info.try_with_schema(schema).map_err(status_of_arrow)?;
    }
    Ok(Response::new(info))
}

fn status_of_arrow(error: arrow::error::ArrowError) -> Status {
    Status::internal(error.to_string())
}

/// What a client fetches with the command itself.
fn by_command(command: &impl ProstMessageExt, schema: &Schema, request: Request<FlightDescriptor>) -> Info {
    info(command.as_any().encode_to_vec().into(), Some(schema), request)
}

fn ipc(schema: &Schema) -> Result<Bytes, Status> {
    let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
    Ok(message.map_err(status_of_arrow)?.0)
}

impl Calls {
    /// Calls to `engine`, which keep `statements` statements.
    ///
    /// # Errors
    /// None: what this server can do is written down in it.
    pub fn new(engine: Arc<Engine>, statements: usize) -> arrow_flight::error::Result<Calls> {
        Ok(Calls {
            engine,
            statements: Statements::new(statements),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            system: SystemTables::default(),
            abilities: tables::abilities()?,
            types: tables::types()?,
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    async fn describe(&self, sql: &str, settings: Settings) -> Result<Statement, Status> {
        if sql.len() > SQL_MAX {
            return Err(wrong(format!("the statement has {} bytes; it may have {SQL_MAX}", sql.len())));
        }
        let followed = updates::followed(sql).map_err(status)?;
        let own = followed.map_or(sql, |(_, own)| own);
        let mut described = Session::new(self.engine.clone(), settings).describe(own).await.map_err(status)?;
        if followed.is_some() {
            described.schema = updates::with_as_of(&described.schema);
        }
        let types = described.parameters;
        // The type of a parameter of any type is known when it is bound, and the columns of the rows may be of that type.
        let is_known = types.iter().all(Option::is_some);
        Ok(Statement {
            sql: sql.to_owned(),
            types,
            parameters: Vec::new(),
            schema: is_known.then_some(described.schema),
            settings,
        })
    }

    /// Answers `statement`.
    async fn answer(&self, statement: &Statement, settings: Settings, caller: Caller) -> Answered {
        let missing = statement.types.len() - statement.parameters.len().min(statement.types.len());
        if missing > 0 {
            return Err(wrong(format!("the statement has {} parameters; {missing} are not bound", statement.types.len())));
        }
        let permit = self.answers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{ANSWERS_MAX} answers are being sent, the most of this server; try later"))
        })?;
        let mut session = Session::new(self.engine.clone(), settings);
        let limit = self.engine.options().time;
        if let Some((every, own)) = updates::followed(&statement.sql).map_err(status)? {
            let schema = match &statement.schema {
                Some(schema) => schema.clone(),
                None => updates::schema(&session, own).await.map_err(status)?,
            };
            let updates = Updates::new(session, own, statement.parameters.clone()).await.map_err(status)?;
            let bounds = Bounds { limit, is_endless: true, peer: caller.peer, permit };
            return Ok(Response::new(answers::stream_of(updates.rows(every, schema.clone()), schema, bounds)));
        }
        let reply = session.run(&statement.sql, statement.parameters.clone()).await.map_err(status)?;
        let answer = match reply {
            Reply::Rows(answer) => answer,
            Reply::Done(_) => {
                self.set(&statement.sql, &caller).await?;
                return ready(Ok(RecordBatch::new_empty(Arc::new(Schema::empty()))));
            }
        };
        let lsn = settings.last(answer.last);
        let schema = statement.schema.clone().unwrap_or(answer.schema);
        let bounds = Bounds { limit, is_endless: false, peer: caller.peer, permit };
        let mut response = Response::new(answers::stream_of(answer.rows, schema, bounds));
        response.metadata_mut().insert(LSN, lsn.0.into());
        Ok(response)
    }

    /// Runs a statement that answers no rows: `SET`.
    async fn update(&self, sql: &str, caller: &Caller) -> Result<i64, Status> {
        if !sql.trim_start().get(..4).is_some_and(|word| word.trim_end().eq_ignore_ascii_case("set")) {
            return Err(read_only());
        }
        if self.set(sql, caller).await? { Ok(0) } else { Err(read_only()) }
    }

    /// Runs `sql` in the session of `caller`, whose settings may not be those that the call carries; whether it is a `SET`.
    async fn set(&self, sql: &str, caller: &Caller) -> Result<bool, Status> {
        let mut session = Session::new(self.engine.clone(), caller.of_session());
        let is_set = matches!(session.run(sql, Vec::new()).await.map_err(status)?, Reply::Done(_));
        if is_set {
            caller.set(*session.settings());
        }
        Ok(is_set)
    }
}

#[tonic::async_trait]
impl FlightSqlService for Calls {
    type FlightService = Calls;

    async fn get_flight_info_statement(&self, query: CommandStatementQuery, request: Request<FlightDescriptor>) -> Info {
        let statement = self.describe(&query.query, Caller::of(&request)?.settings()).await?;
        if !statement.types.is_empty() {
            return Err(wrong(format!("the statement has {} parameters; prepare it and bind them", statement.types.len())));
        }
        let schema = statement.schema.clone();
        let statement_handle = self.statements.add(Of::Ticket, statement)?;
        let ticket = TicketStatementQuery { statement_handle }.as_any().encode_to_vec();
        info(ticket.into(), schema.as_deref(), request)
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, request: Request<Ticket>) -> Answered {
        let statement = self.statements.find(Of::Ticket, &ticket.statement_handle)?;
        self.answer(&statement, statement.settings, Caller::of(&request)?).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let sql = placeholders::numbered(&query.query)?;
        let statement = self.describe(&sql, Caller::of(&request)?.settings()).await?;
        let fields = statement
            .types
            .iter()
            .zip(1..)
            .map(|(of, number)| Field::new(format!("${number}"), parameters::type_for_clients(of.as_ref()), true));
        let parameter_schema = ipc(&Schema::new(fields.collect::<Vec<_>>()))?;
        let dataset_schema = statement.schema.as_deref().map(ipc).transpose()?.unwrap_or_default();
        let prepared_statement_handle = self.statements.add(Of::Prepared, statement)?;
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle, dataset_schema, parameter_schema })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        self.statements.close(&query.prepared_statement_handle)
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = query.prepared_statement_handle;
        let statement = self.statements.find(Of::Prepared, &handle)?;
        let batch = parameters::batch(request.into_inner()).await?;
        self.statements.bind(&handle, parameters::values(&batch, &statement.types)?)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Info {
        let statement = self.statements.find(Of::Prepared, &query.prepared_statement_handle)?;
        let settings = Caller::of(&request)?.settings();
        let schema = statement.schema.clone();
        let statement_handle = self.statements.add(Of::Ticket, Statement { settings, ..(*statement).clone() })?;
        let ticket = TicketStatementQuery { statement_handle }.as_any().encode_to_vec();
        info(ticket.into(), schema.as_deref(), request)
    }

    async fn do_get_prepared_statement(&self, query: CommandPreparedStatementQuery, request: Request<Ticket>) -> Answered {
        let statement = self.statements.find(Of::Prepared, &query.prepared_statement_handle)?;
        let caller = Caller::of(&request)?;
        self.answer(&statement, caller.settings(), caller).await
    }

    async fn get_flight_info_catalogs(&self, query: CommandGetCatalogs, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _request: Request<Ticket>) -> Answered {
        ready(tables::catalogs(query))
    }

    async fn get_flight_info_schemas(&self, query: CommandGetDbSchemas, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _request: Request<Ticket>) -> Answered {
        ready(tables::schemas(query))
    }

    async fn get_flight_info_tables(&self, query: CommandGetTables, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_tables(&self, query: CommandGetTables, _request: Request<Ticket>) -> Answered {
        let all = self.system.all(&self.engine).await.map_err(status)?;
        ready(tables::tables(query, &all))
    }

    async fn get_flight_info_table_types(&self, query: CommandGetTableTypes, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_table_types(&self, query: CommandGetTableTypes, _request: Request<Ticket>) -> Answered {
        ready(tables::table_types(query))
    }

    async fn get_flight_info_sql_info(&self, query: CommandGetSqlInfo, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &query.clone().into_builder(&self.abilities).schema(), request)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _request: Request<Ticket>) -> Answered {
        ready(query.into_builder(&self.abilities).build())
    }

    async fn get_flight_info_xdbc_type_info(&self, query: CommandGetXdbcTypeInfo, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &query.into_builder(&self.types).schema(), request)
    }

    async fn do_get_xdbc_type_info(&self, query: CommandGetXdbcTypeInfo, _request: Request<Ticket>) -> Answered {
        ready(query.into_builder(&self.types).build())
    }

    async fn get_flight_info_primary_keys(&self, query: CommandGetPrimaryKeys, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &tables::primary_keys().schema(), request)
    }

    async fn do_get_primary_keys(&self, _query: CommandGetPrimaryKeys, _request: Request<Ticket>) -> Answered {
        ready(Ok(tables::primary_keys()))
    }

    async fn get_flight_info_exported_keys(&self, query: CommandGetExportedKeys, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &tables::foreign_keys().schema(), request)
    }

    async fn do_get_exported_keys(&self, _query: CommandGetExportedKeys, _request: Request<Ticket>) -> Answered {
        ready(Ok(tables::foreign_keys()))
    }

    async fn get_flight_info_imported_keys(&self, query: CommandGetImportedKeys, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &tables::foreign_keys().schema(), request)
    }

    async fn do_get_imported_keys(&self, _query: CommandGetImportedKeys, _request: Request<Ticket>) -> Answered {
        ready(Ok(tables::foreign_keys()))
    }

    async fn get_flight_info_cross_reference(&self, query: CommandGetCrossReference, request: Request<FlightDescriptor>) -> Info {
        by_command(&query, &tables::foreign_keys().schema(), request)
    }

    async fn do_get_cross_reference(&self, _query: CommandGetCrossReference, _request: Request<Ticket>) -> Answered {
        ready(Ok(tables::foreign_keys()))
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.update(&command.query, &Caller::of(&request)?).await
    }

    async fn do_put_prepared_statement_update(
        &self,
        command: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let statement = self.statements.find(Of::Prepared, &command.prepared_statement_handle)?;
        self.update(&statement.sql, &Caller::of(&request)?).await
    }

    async fn do_put_statement_ingest(
        &self,
        _command: CommandStatementIngest,
        _request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(read_only())
    }

    async fn do_put_fallback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        _message: Any,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        Err(read_only())
    }

    async fn do_put_error_callback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        error: DoPutError,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        Err(wrong(error.to_string()))
    }

    async fn do_action_fallback(
        &self,
        request: Request<Action>,
    ) -> Result<Response<<Self as FlightService>::DoActionStream>, Status> {
        let caller = Caller::of(&request)?;
        let action = request.into_inner();
        let mut session = Session::new(self.engine.clone(), caller.of_session());
        let body = actions::run(&action, &mut session)?;
        caller.set(*session.settings());
        let result = arrow_flight::Result { body: body.into() };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(result)]))))
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
