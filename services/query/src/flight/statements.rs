//! Owns: prepared statements and tickets, by their handles.
//!
//! What must hold: a handle is 128 random bits, so another one finds nothing. Statements are bounded in number and in bytes: a
//! new one takes the place of the ticket that was not used for the longest time, never that of a prepared statement. A ticket
//! ends after `TICKET`, a prepared statement after `PREPARED` without a use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use tonic::Status;

use super::random::random;
use crate::engine::Settings;

const TICKET: Duration = Duration::from_secs(10 * 60);
const PREPARED: Duration = Duration::from_secs(60 * 60);
/// Most bytes of all statements and their parameters.
const BYTES_MAX: usize = 64 << 20;

/// What a handle is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// An answer that a client may fetch.
    Ticket,
    /// A prepared statement.
    Prepared,
}

/// A statement.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Its text.
    pub sql: String,
    /// The types of its parameters.
    pub types: Vec<Option<DataType>>,
    /// The values of its parameters; empty before they are bound.
    pub parameters: Vec<ScalarValue>,
    /// The columns of its rows; `None`: known when it is answered.
    pub schema: Option<SchemaRef>,
    /// The settings under which it is answered.
    pub settings: Settings,
}

impl Statement {
    fn bytes(&self) -> usize {
        let columns = self.schema.as_ref().map_or(0, |schema| schema.fields().len());
        self.sql.len() + 128 * columns + self.parameters.iter().map(ScalarValue::size).sum::<usize>()
    }
}

struct Entry {
    of: Of,
    statement: Arc<Statement>,
    used: Instant,
}

impl Entry {
    fn is_over(&self) -> bool {
        let limit = if self.of == Of::Ticket { TICKET } else { PREPARED };
        self.used.elapsed() >= limit
    }
}

/// The statements of a server.
pub struct Statements {
    most: usize,
    all: Mutex<HashMap<u128, Entry>>,
}

fn key(handle: &[u8]) -> Option<u128> {
    Some(u128::from_le_bytes(handle.try_into().ok()?))
}

/// The answer to a handle that is none.
fn not_found(of: Of) -> Status {
    Status::not_found(match of {
        Of::Ticket => "there is no such ticket, or it has expired; ask for the statement again",
        Of::Prepared => "there is no such prepared statement, or it was closed or has expired; prepare it again",
    })
}

impl Statements {
    /// A server keeps `most` statements.
    pub fn new(most: usize) -> Statements {
        Statements { most, all: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u128, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `statement`; returns its handle.
    ///
    /// # Errors
    /// There are too many prepared statements.
    pub fn add(&self, of: Of, statement: Statement) -> Result<Bytes, Status> {
        let handle = random::<16>()?;
        let mut all = self.lock();
        self.make_room(&mut all, statement.bytes())?;
        all.insert(u128::from_le_bytes(handle), Entry { of, statement: Arc::new(statement), used: Instant::now() });
        Ok(Bytes::copy_from_slice(&handle))
    }

    fn make_room(&self, all: &mut HashMap<u128, Entry>, bytes: usize) -> Result<(), Status> {
        all.retain(|_, entry| !entry.is_over());
        loop {
            let kept: usize = all.values().map(|entry| entry.statement.bytes()).sum();
            if all.len() < self.most && kept + bytes <= BYTES_MAX {
                return Ok(());
            }
            let tickets = all.iter().filter(|(_, entry)| entry.of == Of::Ticket);
            let Some(oldest) = tickets.min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key) else {
                let most = self.most;
                return Err(Status::resource_exhausted(format!(
                    "{} statements of {kept} bytes are prepared; {most} statements of {BYTES_MAX} bytes may be: close some",
                    all.len()
                )));
            };
            all.remove(&oldest);
        }
    }

    /// The statement with the handle `handle`.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, of: Of, handle: &[u8]) -> Result<Arc<Statement>, Status> {
        let mut all = self.lock();
        let entry = key(handle).and_then(|key| all.get_mut(&key)).filter(|entry| entry.of == of && !entry.is_over());
        let entry = entry.ok_or_else(|| not_found(of))?;
        if of == Of::Prepared {
            entry.used = Instant::now();
        }
        Ok(entry.statement.clone())
    }

    /// Binds `parameters` to the prepared statement with the handle `handle`.
    ///
    /// # Errors
    /// There is none, or the parameters are too long.
    pub fn bind(&self, handle: &[u8], parameters: Vec<ScalarValue>) -> Result<(), Status> {
        let statement = self.find(Of::Prepared, handle)?;
        let bound = Statement { parameters, ..(*statement).clone() };
        let mut all = self.lock();
        let mut entry = key(handle).and_then(|key| all.remove(&key)).ok_or_else(|| not_found(Of::Prepared))?;
        let room = self.make_room(&mut all, bound.bytes());
        if room.is_ok() {
            entry.statement = Arc::new(bound);
        }
        all.extend(key(handle).map(|key| (key, entry)));
        room
    }

    /// Forgets the prepared statement with the handle `handle`.
    ///
    /// # Errors
    /// There is none.
    pub fn close(&self, handle: &[u8]) -> Result<(), Status> {
        self.find(Of::Prepared, handle)?;
        let mut all = self.lock();
        key(handle).and_then(|key| all.remove(&key)).map(drop).ok_or_else(|| not_found(Of::Prepared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(sql: &str) -> Statement {
        let settings = Settings::default();
        Statement { sql: sql.to_owned(), types: Vec::new(), parameters: Vec::new(), schema: None, settings }
    }

    #[test]
    fn a_new_statement_takes_the_place_of_a_ticket_and_never_of_a_prepared_one() {
        let statements = Statements::new(3);
        let first = statements.add(Of::Ticket, statement("select 1")).unwrap();
        let kept: Vec<Bytes> = (0..3).map(|_| statements.add(Of::Prepared, statement("select 2")).unwrap()).collect();
        assert_eq!(statements.find(Of::Ticket, &first).unwrap_err().code(), tonic::Code::NotFound);
        assert!(kept.iter().all(|handle| statements.find(Of::Prepared, handle).is_ok()));
        for of in [Of::Ticket, Of::Prepared] {
            assert_eq!(statements.add(of, statement("select 3")).unwrap_err().code(), tonic::Code::ResourceExhausted);
        }
        statements.close(&kept[0]).unwrap();
        assert!(statements.close(&kept[0]).is_err());
        assert!(statements.add(Of::Ticket, statement("select 3")).is_ok());
    }

    #[test]
    fn a_handle_that_is_another_finds_nothing() {
        let statements = Statements::new(3);
        let handle = statements.add(Of::Ticket, statement("select 1")).unwrap();
        assert!(statements.find(Of::Ticket, &handle).is_ok());
        assert!(statements.find(Of::Prepared, &handle).is_err());
        for at in 0..handle.len() {
            let mut changed = handle.to_vec();
            changed[at] ^= 1;
            assert!(statements.find(Of::Ticket, &changed).is_err());
        }
        assert!(statements.find(Of::Ticket, &[]).is_err() && statements.find(Of::Ticket, &[0; 17]).is_err());
    }

    #[test]
    fn bytes_of_statements_are_bounded() {
        let statements = Statements::new(1024);
        let handle = statements.add(Of::Prepared, statement("select $1")).unwrap();
        let long = |len: usize| vec![ScalarValue::from("x".repeat(len))];
        statements.bind(&handle, long(1 << 20)).unwrap();
        assert!(statements.bind(&handle, long(BYTES_MAX)).is_err());
        let kept = statements.find(Of::Prepared, &handle).unwrap();
        assert!(kept.parameters == long(1 << 20), "the parameters before stay");
    }
}
