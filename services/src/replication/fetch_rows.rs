//! Owns: fetching committed records from another host, for SSTables that this host has lost.
//!
//! What must hold: every part is checked on arrival, and a stream without its last part is an error; a wait has a limit.

use std::time::Duration;

use tapestore::error::Error;
use tapestore::record::schema;
use tapestore_engine::repair::rows::{PeerRow, Wanted};
use tonic::{Code, Status};

use super::install::{self, FetchError};
use super::proto::RowsRequest;
use super::rows::{BadPart, PART_MAX, decode};

/// How long a fetch waits for the next part: the other host sends one each second.
const QUIET: Duration = Duration::from_secs(30);

/// The reason why records were not fetched.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// A file of this host cannot be read or written, or the records are not those that are lost.
    #[error(transparent)]
    Store(#[from] Error),
    /// No connection to the other host.
    #[error(transparent)]
    Connect(#[from] FetchError),
    /// The other host does not have all of the records, or cannot read them.
    #[error("{address} refuses: {reason}")]
    Refused {
        /// Address of its replication process.
        address: String,
        /// Its reason.
        reason: String,
    },
    /// The connection ended, or nothing arrives.
    #[error("{address}: {reason}")]
    Broken {
        /// Address of its replication process.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The records arrived damaged.
    #[error("the records arrived damaged: {0}")]
    Damaged(#[from] BadPart),
}

impl RowsError {
    /// Whether the other host cannot be reached now, so that nothing else is to be had from it either.
    pub fn is_away(&self) -> bool {
        matches!(self, RowsError::Connect(_) | RowsError::Broken { .. })
    }
}

/// Fetches the records `wanted` of the host that `from` names, for a store of `generation`, and passes each to `give`.
///
/// # Errors
/// [`RowsError`]; the errors of `give`.
pub async fn fetch(
    from: &install::Wanted,
    generation: u64,
    wanted: &Wanted,
    give: &mut dyn FnMut(PeerRow<'_>) -> Result<(), Error>,
) -> Result<(), RowsError> {
    let address = || from.leader.address.clone();
    let Some(schema) = schema(wanted.kind) else {
        return Err(Error::invalid("kind", format!("{} is unknown to this program", wanted.kind.0)).into());
    };
    let request = RowsRequest {
        cluster: from.cluster.to_le_bytes().to_vec().into(),
        node: from.node.0,
        generation,
        kind: u32::from(wanted.kind.0),
        layout: schema.hash,
        first: wanted.lsn.0.0,
        last: wanted.lsn.1.0,
        from: wanted.time.0.0,
        to: wanted.time.1.0,
    };
    let refused = |status: Status| match status.code() {
        Code::DataLoss | Code::OutOfRange | Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument => {
            RowsError::Refused { address: address(), reason: status.message().to_owned() }
        }
        Code::Unimplemented => {
            let reason = "it runs an earlier release, which cannot send records; install one release on all hosts".to_owned();
            RowsError::Refused { address: address(), reason }
        }
        _ => RowsError::Broken { address: address(), reason: status.message().to_owned() },
    };
    let quiet = || RowsError::Broken { address: address(), reason: format!("nothing arrives for {} s", QUIET.as_secs()) };
    // Room for the other fields of a message.
    let mut client = install::connect(from).await?.max_decoding_message_size(PART_MAX + 1024);
    let opened = tokio::time::timeout(QUIET, client.rows(request)).await.map_err(|_| quiet())?;
    let mut parts = opened.map_err(refused)?.into_inner();
    let mut arrived = 0;
    while let Some(part) = tokio::time::timeout(QUIET, parts.message()).await.map_err(|_| quiet())?.map_err(refused)? {
        arrived = decode(&part, schema.words, arrived, &mut |row| give(row).map_err(RowsError::Store))?;
        if part.is_last {
            return Ok(());
        }
    }
    Err(RowsError::Broken { address: address(), reason: format!("the records end after {arrived}, without a last part") })
}
