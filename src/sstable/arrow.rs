//! Owns: the Arrow IPC parts of an SSTable: the schema message, one message per block, the footer.
//!
//! Prices and sizes are integers with the field metadata `scale = 9`. Times are nanoseconds UTC without
//! a zone. Characters are unsigned bytes. Text is fixed-size binary. Nothing is nullable: as in the
//! records, null is the type's maximum.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_ipc::convert::IpcSchemaEncoder;
use arrow_ipc::{Block as FooterBlock, Buffer, FieldNode, FooterBuilder, MessageBuilder, MessageHeader, MetadataVersion};
use arrow_schema::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use flatbuffers::FlatBufferBuilder;

use super::format::{ALIGN, ARROW_MAGIC, Block, Stored};
use crate::record::{ColumnType, Schema};

/// Marks the start of a message.
const CONTINUATION: [u8; 4] = [0xff; 4];

fn data_type(of: ColumnType) -> DataType {
    match of {
        ColumnType::U8 | ColumnType::Char => DataType::UInt8,
        ColumnType::I8 => DataType::Int8,
        ColumnType::U16 => DataType::UInt16,
        ColumnType::I16 => DataType::Int16,
        ColumnType::U32 => DataType::UInt32,
        ColumnType::I32 => DataType::Int32,
        ColumnType::U64 | ColumnType::Size => DataType::UInt64,
        ColumnType::I64 | ColumnType::Price => DataType::Int64,
        ColumnType::Volume => DataType::Decimal128(38, 9),
        ColumnType::Ts => DataType::Timestamp(TimeUnit::Nanosecond, None),
        ColumnType::Text(n) | ColumnType::Reserved(n) => DataType::FixedSizeBinary(n as i32),
    }
}

/// The Arrow schema of the columns of a file.
pub(super) fn schema(kind: &Schema, columns: &[Stored]) -> ArrowSchema {
    let field = |c: &Stored| {
        let field = Field::new(c.name, data_type(c.of), false);
        match c.of {
            ColumnType::Price | ColumnType::Size => field.with_metadata(HashMap::from([("scale".to_owned(), "9".to_owned())])),
            _ => field,
        }
    };
    let metadata = [("tapestore.kind", kind.name.to_owned()), ("tapestore.kind_id", kind.kind.0.to_string())];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    ArrowSchema::new_with_metadata(columns.iter().map(|c| Arc::new(field(c))).collect::<Vec<_>>(), metadata)
}

/// `message` with its marker and length, padded so that the bytes after it, at `offset`, are aligned.
fn framed(message: &[u8], offset: u64) -> Vec<u8> {
    let len = (offset + 8 + message.len() as u64).next_multiple_of(ALIGN) - offset;
    let mut bytes = Vec::with_capacity(len as usize);
    bytes.extend(CONTINUATION);
    bytes.extend((len as u32 - 8).to_le_bytes());
    bytes.extend(message);
    bytes.resize(len as usize, 0);
    bytes
}

/// The head of a file: magic and schema message.
pub(super) fn head(schema: &ArrowSchema) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let header = IpcSchemaEncoder::new().schema_to_fb_offset(&mut builder, schema).as_union_value();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::Schema);
    message.add_header(header);
    let root = message.finish();
    builder.finish(root, None);
    let mut bytes = ARROW_MAGIC.to_vec();
    bytes.resize(8, 0);
    let message = framed(builder.finished_data(), 8);
    bytes.extend(message);
    bytes
}

/// The message of a block of `rows` rows whose columns begin at `offsets` in a body of `body_len` bytes.
/// Message and body both begin at aligned offsets.
pub(super) fn batch(columns: &[Stored], rows: usize, offsets: &[u64], body_len: u64) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let nodes = vec![FieldNode::new(rows as i64, 0); columns.len()];
    let buffers: Vec<Buffer> = columns
        .iter()
        .zip(offsets)
        .flat_map(|(c, &at)| [Buffer::new(at as i64, 0), Buffer::new(at as i64, (rows * c.of.size()) as i64)])
        .collect();
    let (nodes, buffers) = (builder.create_vector(&nodes), builder.create_vector(&buffers));
    let mut batch = arrow_ipc::RecordBatchBuilder::new(&mut builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    let header = batch.finish().as_union_value();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::RecordBatch);
    message.add_bodyLength(body_len as i64);
    message.add_header(header);
    let root = message.finish();
    builder.finish(root, None);
    framed(builder.finished_data(), 0)
}

/// The marker after the last block.
pub(super) const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// The end of a file: footer, footer length, magic.
pub(super) fn tail(schema: &ArrowSchema, blocks: &[Block]) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let schema = IpcSchemaEncoder::new().schema_to_fb_offset(&mut builder, schema);
    let batches: Vec<FooterBlock> =
        blocks.iter().map(|b| FooterBlock::new(b.offset as i64, b.meta_len as i32, b.body_len as i64)).collect();
    let dictionaries = builder.create_vector::<FooterBlock>(&[]);
    let batches = builder.create_vector(&batches);
    let mut footer = FooterBuilder::new(&mut builder);
    footer.add_version(MetadataVersion::V5);
    footer.add_schema(schema);
    footer.add_dictionaries(dictionaries);
    footer.add_recordBatches(batches);
    let root = footer.finish();
    builder.finish(root, None);
    let footer = builder.finished_data();
    let mut bytes = footer.to_vec();
    bytes.extend((footer.len() as u32).to_le_bytes());
    bytes.extend(ARROW_MAGIC);
    bytes
}
