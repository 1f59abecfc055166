//! Owns: what clients ask about a store before they write SQL: its tables, its types, what this server can do.
//!
//! What must hold: the columns of answers are those that Flight SQL prescribes.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::Result;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables, Nullable, Searchable, SqlInfo, XdbcDataType,
};
use datafusion::catalog::SchemaProvider;
use tokio::sync::OnceCell;

use crate::catalog::Tables;
use crate::engine::{Engine, Settings};
use crate::failure::QueryError;
use crate::planner::{CATALOG, SCHEMA};

/// The type of the tables of kinds.
const TABLE: &str = "TABLE";
/// The type of the tables about the store.
const SYSTEM: &str = "SYSTEM TABLE";

/// A table: its name, its type, its columns.
type Described = (String, &'static str, SchemaRef);

/// The tables about a store; their columns never change.
#[derive(Default)]
pub struct SystemTables(OnceCell<Vec<Described>>);

impl SystemTables {
    /// All tables of the store now.
    ///
    /// # Errors
    /// Those of [`Engine::moment`].
    pub async fn all(&self, engine: &Engine) -> std::result::Result<Vec<Described>, QueryError> {
        let moment = engine.moment(&Settings::default())?;
        let kinds = moment.kinds.iter().map(|kind| (kind.name(&moment.kinds), TABLE, kind.arrow.clone()));
        let mut all: Vec<Described> = kinds.collect();
        let system = self.0.get_or_try_init(|| async {
            let tables = Tables(moment.clone());
            let names = tables.table_names().into_iter().filter(|name| all.iter().all(|(kind, ..)| kind != name));
            let mut system = Vec::new();
            for name in names {
                if let Some(table) = tables.table(&name).await? {
                    system.push((name, SYSTEM, table.schema()));
                }
            }
            Ok::<_, QueryError>(system)
        });
        let system: Vec<Described> = system.await?.clone();
        // A user's kind that came later hides the table of its name.
        let is_hidden = |name: &str| all.iter().any(|(kind, ..)| kind == name);
        let shown: Vec<Described> = system.into_iter().filter(|(name, ..)| !is_hidden(name)).collect();
        all.extend(shown);
        Ok(all)
    }
}

/// The catalogs: one.
///
/// # Errors
/// None.
pub fn catalogs(command: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(CATALOG);
    builder.build()
}

/// The schemas: one.
///
/// # Errors
/// A pattern is wrong.
pub fn schemas(command: CommandGetDbSchemas) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(CATALOG, SCHEMA);
    builder.build()
}

/// Those of `tables` that `command` asks for.
///
/// # Errors
/// A pattern is wrong.
pub fn tables(command: CommandGetTables, tables: &[Described]) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for (name, of, schema) in tables {
        builder.append(CATALOG, SCHEMA, name, *of, schema)?;
    }
    builder.build()
}

/// The types of tables.
///
/// # Errors
/// None.
pub fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    [TABLE, SYSTEM].into_iter().for_each(|of| builder.append(of));
    builder.build()
}

fn texts(names: &[(&str, bool)], last: &[(&str, DataType)]) -> RecordBatch {
    let mut fields: Vec<Field> = names.iter().map(|(name, is_null)| Field::new(*name, DataType::Utf8, *is_null)).collect();
    fields.extend(last.iter().map(|(name, of)| Field::new(*name, of.clone(), *name == "key_name")));
    RecordBatch::new_empty(Arc::new(Schema::new(fields)))
}

/// The primary keys of a table: none.
pub fn primary_keys() -> RecordBatch {
    let names = [("catalog_name", true), ("db_schema_name", true), ("table_name", false), ("column_name", false)];
    texts(&names, &[("key_sequence", DataType::Int32), ("key_name", DataType::Utf8)])
}

/// The foreign keys of a table: none.
pub fn foreign_keys() -> RecordBatch {
    let names = [
        ("pk_catalog_name", true),
        ("pk_db_schema_name", true),
        ("pk_table_name", false),
        ("pk_column_name", false),
        ("fk_catalog_name", true),
        ("fk_db_schema_name", true),
        ("fk_table_name", false),
        ("fk_column_name", false),
    ];
    let schema = texts(&names, &[("key_sequence", DataType::Int32)]).schema();
    let mut fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend(["fk_key_name", "pk_key_name"].map(|name| Field::new(name, DataType::Utf8, true)));
    fields.extend(["update_rule", "delete_rule"].map(|name| Field::new(name, DataType::UInt8, false)));
    RecordBatch::new_empty(Arc::new(Schema::new(fields)))
}

/// What this server can do.
///
/// # Errors
/// None.
pub fn abilities() -> Result<SqlInfoData> {
    let mut builder = SqlInfoDataBuilder::new();
    builder.append(SqlInfo::FlightSqlServerName, "tapestore");
    builder.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    builder.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    builder.append(SqlInfo::FlightSqlServerReadOnly, true);
    builder.append(SqlInfo::FlightSqlServerSql, true);
    builder.append(SqlInfo::FlightSqlServerSubstrait, false);
    builder.append(SqlInfo::FlightSqlServerTransaction, 0i32);
    builder.append(SqlInfo::FlightSqlServerCancel, false);
    builder.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    builder.append(SqlInfo::SqlDdlCatalog, false);
    builder.append(SqlInfo::SqlDdlSchema, false);
    builder.append(SqlInfo::SqlDdlTable, false);
    builder.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    builder.append(SqlInfo::SqlTransactionsSupported, false);
    builder.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    builder.build()
}

/// The types of columns.
///
/// # Errors
/// None.
pub fn types() -> Result<XdbcTypeInfoData> {
    use XdbcDataType as X;
    let mut builder = XdbcTypeInfoDataBuilder::new();
    for (name, of, size, is_unsigned, quote) in [
        ("BOOLEAN", X::XdbcBit, 1, None, None),
        ("TINYINT", X::XdbcTinyint, 8, Some(false), None),
        ("SMALLINT", X::XdbcSmallint, 16, Some(false), None),
        ("INTEGER", X::XdbcInteger, 32, Some(false), None),
        ("BIGINT", X::XdbcBigint, 64, Some(false), None),
        ("BIGINT UNSIGNED", X::XdbcBigint, 64, Some(true), None),
        ("REAL", X::XdbcReal, 24, Some(false), None),
        ("DOUBLE", X::XdbcDouble, 53, Some(false), None),
        ("DECIMAL", X::XdbcDecimal, 38, Some(false), None),
        ("VARCHAR", X::XdbcVarchar, i32::MAX, None, Some("'")),
        ("DATE", X::XdbcDate, 10, None, Some("'")),
        ("TIMESTAMP", X::XdbcTimestamp, 29, None, Some("'")),
    ] {
        builder.append(XdbcTypeInfo {
            type_name: name.to_owned(),
            data_type: of,
            column_size: Some(size),
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: name == "VARCHAR",
            searchable: Searchable::Full,
            unsigned_attribute: is_unsigned,
            auto_increment: is_unsigned.map(|_| false),
            local_type_name: Some(name.to_owned()),
            sql_data_type: of,
            num_prec_radix: is_unsigned.map(|_| if name == "DECIMAL" { 10 } else { 2 }),
            ..XdbcTypeInfo::default()
        });
    }
    builder.build()
}
