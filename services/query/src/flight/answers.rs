//! Owns: the rows of an answer on their way to a client.
//!
//! What must hold: rows are read no faster than the client takes them, and what waits for it is encoded, so that it holds no
//! page of the store. A statement ends when its call ends, and at its limit of time though nobody reads; one that is followed
//! ends when nobody reads for as long. An answer that ends early ends with an error.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use arrow_flight::FlightData;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoder, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use datafusion::execution::SendableRecordBatchStream;
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::Status;

use super::connection::{GRACE, Peer};
use super::status::status;
use crate::failure::QueryError;

/// Bytes of a message. Clients accept 4 MiB.
const MESSAGE: usize = 1 << 20;
/// Most messages that wait for a client.
const WAITING: usize = 2;

/// Messages for a client.
pub type Messages = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// What bounds an answer.
pub struct Bounds {
    /// The limit of time.
    pub limit: Duration,
    /// Whether the limit is of each message, because the answer goes on.
    pub is_endless: bool,
    /// The connection that it is sent on.
    pub peer: Arc<Peer>,
    /// One of the answers that are sent at a time.
    pub permit: OwnedSemaphorePermit,
}

/// About the number of bytes of the rows of `array` within a message.
fn bytes(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Dictionary(key, _) => key.primitive_width().unwrap_or(8) * array.len(),
        of => match of.primitive_width() {
            Some(width) => width * array.len(),
            None => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
        },
    }
}

/// The rows of `batch` as columns of `schema`, in pieces that fit into a message.
fn pieces(batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<RecordBatch>, QueryError> {
    let typed = |(column, field): (&ArrayRef, &Arc<arrow::datatypes::Field>)| match column.data_type() == field.data_type() {
        true => Ok(column.clone()),
        false => cast(column, field.data_type()),
    };
    let columns: Result<Vec<ArrayRef>, _> = batch.columns().iter().zip(schema.fields()).map(typed).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = columns
        .and_then(|columns| RecordBatch::try_new_with_options(schema.clone(), columns, &options))
        .map_err(|error| QueryError::Internal { reason: format!("the rows are not of the columns of the statement: {error}") })?;
    let size: usize = batch.columns().iter().map(bytes).sum();
    let rows = (batch.num_rows() / size.div_ceil(MESSAGE).max(1)).max(1);
    Ok((0..batch.num_rows()).step_by(rows).map(|at| batch.slice(at, rows.min(batch.num_rows() - at))).collect())
}

fn encoder(rows: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static, schema: SchemaRef) -> FlightDataEncoder {
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_dictionary_handling(DictionaryHandling::Resend)
        // The pieces are of a good size. The encoder would count the whole file that a column is mapped from.
        .with_max_flight_data_size(usize::MAX)
        .build(rows)
}

fn encoded(rows: SendableRecordBatchStream, schema: SchemaRef) -> FlightDataEncoder {
    let of = schema.clone();
    let failed = |error: QueryError| FlightError::Tonic(Box::new(status(error)));
    let rows = rows.flat_map(move |batch| {
        let found = batch.map_err(QueryError::from).and_then(|batch| pieces(&batch, &of)).map_err(failed);
        stream::iter(match found {
            Ok(pieces) => pieces.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    });
    encoder(rows, schema)
}

/// The rows of `batch`, which are made already.
pub fn ready(batch: RecordBatch) -> Messages {
    let schema = batch.schema();
    Box::pin(encoder(stream::iter([Ok(batch)]), schema).map(|message| message.map_err(Status::from)))
}

/// What a statement sends to its call; `None` is the end.
type Out = mpsc::Sender<Result<Option<FlightData>, Status>>;

/// Sends the messages of `encoder` to `out`, all of them or each within `limit`.
async fn send(mut encoder: FlightDataEncoder, out: &Out, limit: Duration, is_endless: bool) -> Result<(), Status> {
    let mut ends = Instant::now() + limit;
    loop {
        let message = tokio::select! {
            biased;
            () = out.closed() => return Ok(()),
            message = encoder.next() => message,
        };
        let is_last = message.is_none();
        let message = message.transpose().map_err(Status::from)?;
        if is_endless {
            ends = Instant::now() + limit;
        }
        match tokio::time::timeout_at(ends, out.send(Ok(message))).await {
            Ok(sent) if sent.is_err() || is_last => return Ok(()),
            Ok(_) => {}
            Err(_) => return Err(status(QueryError::TooLong { limit })),
        }
    }
}

/// The messages of the rows `rows` as columns of `schema`.
pub fn stream_of(rows: SendableRecordBatchStream, schema: SchemaRef, bounds: Bounds) -> Messages {
    let (out, messages) = mpsc::channel(WAITING);
    let Bounds { limit, is_endless, peer, permit } = bounds;
    tokio::spawn(async move {
        let sending = AssertUnwindSafe(send(encoded(rows, schema), &out, limit, is_endless)).catch_unwind();
        let ended = sending.await.unwrap_or_else(|_| Err(panicked()));
        if let Err(status) = ended
            && tokio::time::timeout(GRACE, out.send(Err(status))).await.is_err()
        {
            // It does not even take the error.
            peer.close();
        }
    });
    Box::pin(stream::unfold((messages, Some(permit)), |(mut messages, permit)| async move {
        let permit = permit?;
        match messages.recv().await {
            Some(Ok(Some(message))) => Some((Ok(message), (messages, Some(permit)))),
            Some(Ok(None)) => None,
            Some(Err(status)) => Some((Err(status), (messages, None))),
            None => Some((Err(Status::internal("the answer ended early")), (messages, None))),
        }
    }))
}

/// The status of a call that met a bug of this program.
pub fn panicked() -> Status {
    status(QueryError::Internal { reason: "a call panicked; its log has the reason".to_owned() })
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int64Array};
    use arrow::datatypes::{Field, Schema, UInt32Type};

    use super::*;

    #[test]
    fn pieces_have_all_rows_and_fit_into_a_message() {
        let names: DictionaryArray<UInt32Type> = (0..300_000u32).map(|i| Some(["a", "b", "c"][i as usize % 3])).collect();
        let numbers = Int64Array::from_iter_values(0..300_000);
        let field = |name: &str, of: &DataType| Field::new(name, of.clone(), true);
        let schema = Arc::new(Schema::new(vec![field("s", names.data_type()), field("n", numbers.data_type())]));
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(names), Arc::new(numbers)]).unwrap();
        let pieces_of = |batch: &RecordBatch| pieces(batch, &schema).unwrap();
        assert!(pieces_of(&batch).len() > 3);
        assert_eq!(pieces_of(&batch).iter().map(RecordBatch::num_rows).sum::<usize>(), 300_000);
        assert!(pieces_of(&batch).iter().all(|piece| piece.columns().iter().map(bytes).sum::<usize>() <= MESSAGE + 1024));
        // A small slice of a large batch is one piece.
        assert_eq!(pieces_of(&batch.slice(1000, 10)).len(), 1);
        assert!(pieces_of(&batch.slice(0, 0)).is_empty());
    }
}
