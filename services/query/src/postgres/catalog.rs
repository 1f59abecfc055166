//! Owns: the tables in which PostgreSQL's clients look up tables: `pg_catalog`, and what `rewrite` reads as `information_schema`.
//!
//! The store has no indexes, constraints, triggers, comments: tables of those are there, and empty.
//!
//! What must hold: a table is made when a statement names it. The numbers of tables stay the same while the store is served.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use pgwire::api::Type;

use crate::catalog::Tables;
use crate::engine::Moment;
use crate::instruments;
use crate::postgres::commands::Values;
use crate::postgres::rows::type_of;
use crate::schema::time;

/// The name of the database.
pub const DATABASE: &str = "tapestore";
/// The owner of all tables.
pub const OWNER: &str = "tapestore";
const OWNER_NUMBER: i64 = 10;
const PUBLIC: i64 = 2200;
/// The numbers of kinds' tables follow this, and those of system tables and of derived ones.
const KINDS: i64 = 16_384;
const SYSTEM: i64 = 100_000;
const DERIVED: i64 = 200_000;

/// Schemas by their numbers.
pub const SCHEMAS: [(i64, &str); 3] = [(11, "pg_catalog"), (PUBLIC, "public"), (13_000, "information_schema")];

/// Tables of the catalog that clients name by `::regclass`.
const NUMBERED: [(i64, &str); 12] = [
    (1247, "pg_type"),
    (1249, "pg_attribute"),
    (1255, "pg_proc"),
    (1259, "pg_class"),
    (1260, "pg_authid"),
    (1262, "pg_database"),
    (2606, "pg_constraint"),
    (2609, "pg_description"),
    (2610, "pg_index"),
    (2615, "pg_namespace"),
    (3079, "pg_extension"),
    (1213, "pg_tablespace"),
];

/// Types: number, name, bytes, category, the name in SQL.
const TYPES: [(i64, &str, i64, &str, &str); 22] = [
    (16, "bool", 1, "B", "boolean"),
    (17, "bytea", -1, "U", "bytea"),
    (18, "char", 1, "Z", "\"char\""),
    (19, "name", 64, "S", "name"),
    (20, "int8", 8, "N", "bigint"),
    (21, "int2", 2, "N", "smallint"),
    (23, "int4", 4, "N", "integer"),
    (25, "text", -1, "S", "text"),
    (26, "oid", 4, "N", "oid"),
    (114, "json", -1, "U", "json"),
    (700, "float4", 4, "N", "real"),
    (701, "float8", 8, "N", "double precision"),
    (705, "unknown", -2, "X", "unknown"),
    (1042, "bpchar", -1, "S", "character"),
    (1043, "varchar", -1, "S", "character varying"),
    (1082, "date", 4, "D", "date"),
    (1083, "time", 8, "D", "time without time zone"),
    (1114, "timestamp", 8, "D", "timestamp without time zone"),
    (1184, "timestamptz", 8, "D", "timestamp with time zone"),
    (1186, "interval", 16, "T", "interval"),
    (1700, "numeric", -1, "N", "numeric"),
    (2950, "uuid", 16, "U", "uuid"),
];

/// Tables that have no rows, with their columns: `#` a number, `?` true or false, else a text.
const EMPTY: [(&str, &str); 47] = [
    ("pg_aggregate", "#aggfnoid aggkind"),
    ("pg_attrdef", "#oid #adrelid #adnum adbin"),
    ("pg_auth_members", "#roleid #member #grantor ?admin_option"),
    ("pg_cast", "#oid #castsource #casttarget"),
    ("pg_collation", "#oid collname #collnamespace #collowner"),
    (
        "pg_constraint",
        "#oid conname #connamespace contype ?condeferrable ?condeferred ?convalidated #conrelid #contypid #conindid \
         #conparentid #confrelid confupdtype confdeltype confmatchtype ?conislocal conkey confkey conbin",
    ),
    ("pg_conversion", "#oid conname"),
    ("pg_db_role_setting", "#setdatabase #setrole setconfig"),
    ("pg_default_acl", "#oid #defaclrole #defaclnamespace defaclobjtype defaclacl"),
    ("pg_depend", "#classid #objid #objsubid #refclassid #refobjid #refobjsubid deptype"),
    ("pg_description", "#objoid #classoid #objsubid description"),
    ("pg_enum", "#oid #enumtypid #enumsortorder enumlabel"),
    ("pg_event_trigger", "#oid evtname"),
    ("pg_extension", "#oid extname #extowner #extnamespace ?extrelocatable extversion"),
    ("pg_foreign_data_wrapper", "#oid fdwname"),
    ("pg_foreign_server", "#oid srvname #srvowner #srvfdw"),
    ("pg_foreign_table", "#ftrelid #ftserver ftoptions"),
    (
        "pg_index",
        "#indexrelid #indrelid #indnatts #indnkeyatts ?indisunique ?indisprimary ?indisexclusion ?indimmediate ?indisclustered \
         ?indisvalid ?indcheckxmin ?indisready ?indislive ?indisreplident indkey indclass indoption indexprs indpred",
    ),
    ("pg_indexes", "schemaname tablename indexname tablespace indexdef"),
    ("pg_inherits", "#inhrelid #inhparent #inhseqno ?inhdetachpending"),
    ("pg_keywords", "word catcode ?barelabel catdesc baredesc"),
    ("pg_language", "#oid lanname"),
    ("pg_locks", "locktype #database #relation #pid mode ?granted"),
    ("pg_matviews", "schemaname matviewname matviewowner definition"),
    ("pg_opclass", "#oid opcname"),
    ("pg_operator", "#oid oprname"),
    ("pg_partitioned_table", "#partrelid partstrat #partnatts"),
    ("pg_policy", "#oid polname #polrelid polcmd ?polpermissive polroles polqual polwithcheck"),
    ("pg_proc", "#oid proname #pronamespace #proowner #prolang prokind #prorettype ?proretset proargtypes"),
    ("pg_publication", "#oid pubname #pubowner ?puballtables"),
    ("pg_publication_namespace", "#oid #pnpubid #pnnspid"),
    ("pg_publication_rel", "#oid #prpubid #prrelid"),
    ("pg_range", "#rngtypid #rngsubtype"),
    ("pg_rewrite", "#oid rulename #ev_class ev_type ev_enabled ?is_instead"),
    ("pg_sequence", "#seqrelid #seqtypid #seqstart"),
    ("pg_sequences", "schemaname sequencename"),
    ("pg_shdescription", "#objoid #classoid description"),
    ("pg_stat_activity", "#datid datname #pid usename application_name state query"),
    ("pg_statistic_ext", "#oid #stxrelid stxname #stxnamespace stxkind stxkeys #stxstattarget"),
    ("pg_subscription", "#oid subname"),
    ("pg_trigger", "#oid #tgrelid #tgparentid tgname #tgfoid tgenabled ?tgisinternal"),
    ("pg_user_mapping", "#oid #umuser #umserver"),
    ("pg_views", "schemaname viewname viewowner definition"),
    ("information_key_column_usage", "constraint_name table_schema table_name column_name #ordinal_position"),
    ("information_table_constraints", "constraint_name table_schema table_name constraint_type"),
    ("information_views", "table_catalog table_schema table_name view_definition"),
    ("information_routines", "specific_name routine_schema routine_name routine_type"),
];

/// Tables that have rows.
const FULL: [&str; 14] = [
    "pg_namespace",
    "pg_class",
    "pg_attribute",
    "pg_type",
    "pg_database",
    "pg_settings",
    "pg_am",
    "pg_roles",
    "pg_user",
    "pg_tables",
    "pg_tablespace",
    "information_tables",
    "information_columns",
    "information_schemata",
];

/// Whether there is a table `name`.
pub fn has(name: &str) -> bool {
    FULL.contains(&name) || is_empty(name)
}

/// Whether the table `name` has never a row.
pub fn is_empty(name: &str) -> bool {
    EMPTY.iter().any(|(empty, _)| *empty == name)
}

/// The names in SQL of types, by their numbers.
pub fn types() -> impl Iterator<Item = (i64, &'static str)> {
    TYPES.iter().map(|(number, .., name)| (*number, *name))
}

/// The tables of `moment`, by their numbers.
pub fn numbered(moment: &Moment) -> Vec<(i64, String)> {
    let own = relations(moment).into_iter().map(|relation| (relation.number, relation.name));
    own.chain(NUMBERED.iter().map(|(number, name)| (*number, (*name).to_owned()))).collect()
}

/// The tables of the catalog, of one moment.
#[derive(Debug)]
pub struct Catalog(pub Moment);

#[async_trait]
impl SchemaProvider for Catalog {
    fn table_names(&self) -> Vec<String> {
        // They are found by their names; a list of tables is one of records.
        Vec::new()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let columns = match name {
            "pg_namespace" => namespaces(),
            "pg_class" => classes(&self.0),
            "pg_attribute" => attributes(&self.0),
            "pg_type" => all_types(),
            "pg_database" => databases(),
            "pg_settings" => settings(),
            "pg_am" => Columns::of(1).numbers("oid", |_| 2).text("amname", "heap").text("amhandler", "").text("amtype", "t"),
            "pg_roles" | "pg_user" => roles(),
            "pg_tables" => tables(&self.0),
            "pg_tablespace" => Columns::of(1).number("oid", 1663).text("spcname", "pg_default").number("spcowner", OWNER_NUMBER),
            "information_tables" => information_tables(&self.0),
            "information_columns" => information_columns(&self.0),
            "information_schemata" => information_schemata(),
            name => match EMPTY.iter().find(|(empty, _)| *empty == name) {
                Some((_, columns)) => empty(columns),
                None => return Ok(None),
            },
        };
        columns.table().map(Some)
    }

    fn table_exist(&self, name: &str) -> bool {
        has(name)
    }
}

/// A table that clients may ask for.
struct Relation {
    number: i64,
    name: String,
    columns: SchemaRef,
}

fn relations(moment: &Moment) -> Vec<Relation> {
    let kinds = moment.kinds.iter().map(|kind| Relation {
        number: KINDS + i64::from(kind.kind.kind.0),
        name: kind.name(&moment.kinds),
        columns: kind.arrow.clone(),
    });
    let mut all: Vec<Relation> = kinds.collect();
    for (number, (name, columns)) in (SYSTEM..).zip(system()) {
        // A kind may be called as a system table: the kind is meant.
        if all.iter().all(|relation| relation.name != name) {
            let fields = columns.into_iter().map(|(name, of)| Field::new(name, of, true)).collect::<Vec<_>>();
            all.push(Relation { number, name: name.to_owned(), columns: Arc::new(Schema::new(fields)) });
        }
    }
    // As in the list of tables: a store whose marks cannot be read has none.
    for (name, (publisher, _, mark)) in Tables(moment.clone()).derived().unwrap_or_default() {
        if let Some(kind) = moment.kinds.iter().find(|kind| kind.kind.kind == mark.bars) {
            all.push(Relation { number: DERIVED + i64::from(publisher.0), name, columns: kind.arrow.clone() });
        }
    }
    all
}

/// The columns of system tables, which are not made for it.
pub fn system() -> Vec<(&'static str, Vec<(&'static str, DataType)>)> {
    use DataType::{UInt16, UInt32, UInt64, Utf8};
    let span = || [("first_time", time()), ("last_time", time()), ("first_lsn", UInt64), ("last_lsn", UInt64)];
    let mut files = vec![("file", UInt64), ("kind", Utf8), ("rows", UInt64), ("bytes", UInt64)];
    files.extend(span());
    files.push(("path", Utf8));
    let mut blocks = vec![("file", UInt64), ("block", UInt64), ("kind", Utf8), ("rows", UInt64), ("bytes", UInt64)];
    blocks.extend(span());
    let kinds = vec![("name", Utf8), ("number", UInt16), ("bytes", UInt64), ("files", UInt64), ("rows_in_files", UInt64)];
    let mut publishers = vec![("publisher", UInt16), ("epoch", UInt32), ("process", UInt32)];
    publishers.extend(["accepted", "durable", "committed", "accepted_lsn"].map(|name| (name, UInt64)));
    vec![
        (instruments::NAME, instruments::columns().collect()),
        ("kinds", kinds),
        ("files", files),
        ("blocks", blocks),
        ("publishers", publishers),
        ("watermarks", vec![("name", Utf8), ("lsn", UInt64)]),
    ]
}

/// Columns of a table with so many rows.
struct Columns {
    rows: usize,
    columns: Vec<(String, ArrayRef)>,
}

impl Columns {
    fn of(rows: usize) -> Columns {
        Columns { rows, columns: Vec::new() }
    }

    fn with(mut self, name: &str, values: ArrayRef) -> Columns {
        self.columns.push((name.to_owned(), values));
        self
    }

    fn numbers(self, name: &str, value: impl Fn(usize) -> i64) -> Columns {
        let values = Int64Array::from_iter_values((0..self.rows).map(value));
        self.with(name, Arc::new(values))
    }

    fn number(self, name: &str, value: i64) -> Columns {
        self.numbers(name, |_| value)
    }

    fn texts<T: AsRef<str>>(self, name: &str, value: impl Fn(usize) -> T) -> Columns {
        let values = StringArray::from_iter_values((0..self.rows).map(value));
        self.with(name, Arc::new(values))
    }

    fn text(self, name: &str, value: &str) -> Columns {
        self.texts(name, |_| value)
    }

    fn flag(self, name: &str, value: bool) -> Columns {
        let values = BooleanArray::from(vec![value; self.rows]);
        self.with(name, Arc::new(values))
    }

    fn nulls(self, names: &[&str]) -> Columns {
        names.iter().fold(self, |columns, name| {
            let values = StringArray::new_null(columns.rows);
            columns.with(name, Arc::new(values))
        })
    }

    fn table(self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let fields = self.columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let batch = RecordBatch::try_new(schema.clone(), self.columns.into_iter().map(|(_, array)| array).collect())?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
    }
}

fn empty(columns: &str) -> Columns {
    columns.split_whitespace().fold(Columns::of(0), |table, column| match column.split_at_checked(1) {
        Some(("#", name)) => table.number(name, 0),
        Some(("?", name)) => table.flag(name, false),
        _ => table.text(column, ""),
    })
}

/// The item at `at`, or what an empty one is: never asked beyond the end.
fn item<T>(items: &[T], at: usize) -> Option<&T> {
    items.get(at)
}

fn namespaces() -> Columns {
    Columns::of(SCHEMAS.len())
        .numbers("oid", |at| item(&SCHEMAS, at).map_or(0, |schema| schema.0))
        .texts("nspname", |at| item(&SCHEMAS, at).map_or("", |schema| schema.1))
        .number("nspowner", OWNER_NUMBER)
        .nulls(&["nspacl"])
}

fn classes(moment: &Moment) -> Columns {
    let all = relations(moment);
    let of = |at: usize| item(&all, at);
    Columns::of(all.len())
        .numbers("oid", |at| of(at).map_or(0, |relation| relation.number))
        .texts("relname", |at| of(at).map_or("", |relation| relation.name.as_str()))
        .number("relnamespace", PUBLIC)
        .number("reltype", 0)
        .number("reloftype", 0)
        .number("relowner", OWNER_NUMBER)
        .number("relam", 2)
        .number("relfilenode", 0)
        .number("reltablespace", 0)
        .number("relpages", 0)
        .number("reltuples", -1)
        .number("relallvisible", 0)
        .number("reltoastrelid", 0)
        .flag("relhasindex", false)
        .flag("relisshared", false)
        .text("relpersistence", "p")
        .text("relkind", "r")
        .numbers("relnatts", |at| of(at).map_or(0, |relation| relation.columns.fields().len() as i64))
        .number("relchecks", 0)
        .flag("relhasrules", false)
        .flag("relhastriggers", false)
        .flag("relhassubclass", false)
        .flag("relrowsecurity", false)
        .flag("relforcerowsecurity", false)
        .flag("relispopulated", true)
        .text("relreplident", "n")
        .flag("relispartition", false)
        .number("relrewrite", 0)
        .number("relfrozenxid", 0)
        .number("relminmxid", 0)
        .nulls(&["relacl", "reloptions", "relpartbound"])
}

/// A column of a table: the table, its place from 1, its name, its type, whether it is never null.
fn columns_of(moment: &Moment) -> Vec<(Relation, i64, String, Type, bool)> {
    let of = |relation: Relation| {
        let fields = relation.columns.fields().clone();
        let (number, name, columns) = (relation.number, relation.name, relation.columns);
        (1..).zip(fields.to_vec()).map(move |(place, field)| {
            let relation = Relation { number, name: name.clone(), columns: columns.clone() };
            (relation, place, field.name().clone(), type_of(field.data_type()), !field.is_nullable())
        })
    };
    relations(moment).into_iter().flat_map(of).collect()
}

fn bytes_of(of: &Type) -> i64 {
    TYPES.iter().find(|(number, ..)| *number == i64::from(of.oid())).map_or(-1, |(_, _, bytes, ..)| *bytes)
}

fn sql_name(of: &Type) -> &'static str {
    types().find(|(number, _)| *number == i64::from(of.oid())).map_or("text", |(_, name)| name)
}

fn attributes(moment: &Moment) -> Columns {
    let all = columns_of(moment);
    let of = |at: usize| item(&all, at);
    let is_required = BooleanArray::from(all.iter().map(|(.., is_required)| *is_required).collect::<Vec<_>>());
    Columns::of(all.len())
        .numbers("attrelid", |at| of(at).map_or(0, |(relation, ..)| relation.number))
        .texts("attname", |at| of(at).map_or("", |(_, _, name, ..)| name.as_str()))
        .numbers("atttypid", |at| of(at).map_or(0, |(_, _, _, of, _)| i64::from(of.oid())))
        .number("attstattarget", -1)
        .numbers("attlen", |at| of(at).map_or(-1, |(_, _, _, of, _)| bytes_of(of)))
        .numbers("attnum", |at| of(at).map_or(0, |(_, place, ..)| *place))
        .number("attndims", 0)
        .number("attcacheoff", -1)
        .number("atttypmod", -1)
        .flag("attbyval", false)
        .text("attalign", "d")
        .text("attstorage", "p")
        .text("attcompression", "")
        .with("attnotnull", Arc::new(is_required))
        .flag("atthasdef", false)
        .flag("atthasmissing", false)
        .text("attidentity", "")
        .text("attgenerated", "")
        .flag("attisdropped", false)
        .flag("attislocal", true)
        .number("attinhcount", 0)
        .number("attcollation", 0)
        .nulls(&["attacl", "attoptions", "attfdwoptions", "attmissingval"])
}

fn all_types() -> Columns {
    let of = |at: usize| item(&TYPES, at);
    Columns::of(TYPES.len())
        .numbers("oid", |at| of(at).map_or(0, |of| of.0))
        .texts("typname", |at| of(at).map_or("", |of| of.1))
        .number("typnamespace", 11)
        .number("typowner", OWNER_NUMBER)
        .numbers("typlen", |at| of(at).map_or(-1, |of| of.2))
        .flag("typbyval", false)
        .text("typtype", "b")
        .texts("typcategory", |at| of(at).map_or("", |of| of.3))
        .flag("typispreferred", false)
        .flag("typisdefined", true)
        .text("typdelim", ",")
        .number("typrelid", 0)
        .number("typelem", 0)
        .number("typarray", 0)
        .text("typinput", "")
        .text("typoutput", "")
        .text("typreceive", "")
        .text("typsend", "")
        .text("typalign", "d")
        .text("typstorage", "p")
        .flag("typnotnull", false)
        .number("typbasetype", 0)
        .number("typtypmod", -1)
        .number("typndims", 0)
        .number("typcollation", 0)
        .nulls(&["typdefault", "typacl"])
}

fn databases() -> Columns {
    Columns::of(1)
        .number("oid", 16_000)
        .text("datname", DATABASE)
        .number("datdba", OWNER_NUMBER)
        .number("encoding", 6)
        .text("datlocprovider", "c")
        .flag("datistemplate", false)
        .flag("datallowconn", true)
        .number("datconnlimit", -1)
        .number("datfrozenxid", 0)
        .number("dattablespace", 1663)
        .text("datcollate", "C")
        .text("datctype", "C")
        .nulls(&["daticulocale", "daticurules", "datcollversion", "datacl"])
}

fn settings() -> Columns {
    let all = Values::default().all();
    Columns::of(all.len())
        .texts("name", |at| item(&all, at).map_or("", |(name, _)| *name))
        .texts("setting", |at| item(&all, at).map_or("", |(_, value)| value.as_str()))
        .text("category", "Client Connection Defaults")
        .text("vartype", "string")
        .text("context", "user")
        .text("source", "default")
        .nulls(&["unit", "short_desc", "extra_desc", "min_val", "max_val", "enumvals", "boot_val", "reset_val"])
}

fn roles() -> Columns {
    Columns::of(1)
        .number("oid", OWNER_NUMBER)
        .text("rolname", OWNER)
        .text("usename", OWNER)
        .number("usesysid", OWNER_NUMBER)
        .flag("rolsuper", false)
        .flag("rolinherit", true)
        .flag("rolcreaterole", false)
        .flag("rolcreatedb", false)
        .flag("rolcanlogin", true)
        .flag("rolreplication", false)
        .flag("rolbypassrls", false)
        .number("rolconnlimit", -1)
        .nulls(&["rolpassword", "rolvaliduntil", "rolconfig"])
}

fn tables(moment: &Moment) -> Columns {
    let all = relations(moment);
    Columns::of(all.len())
        .text("schemaname", "public")
        .texts("tablename", |at| item(&all, at).map_or("", |relation| relation.name.as_str()))
        .text("tableowner", OWNER)
        .nulls(&["tablespace"])
        .flag("hasindexes", false)
        .flag("hasrules", false)
        .flag("hastriggers", false)
        .flag("rowsecurity", false)
}

fn information_tables(moment: &Moment) -> Columns {
    let all = relations(moment);
    Columns::of(all.len())
        .text("table_catalog", DATABASE)
        .text("table_schema", "public")
        .texts("table_name", |at| item(&all, at).map_or("", |relation| relation.name.as_str()))
        .text("table_type", "BASE TABLE")
        .text("is_insertable_into", "NO")
}

fn information_columns(moment: &Moment) -> Columns {
    let all = columns_of(moment);
    let of = |at: usize| item(&all, at);
    Columns::of(all.len())
        .text("table_catalog", DATABASE)
        .text("table_schema", "public")
        .texts("table_name", |at| of(at).map_or("", |(relation, ..)| relation.name.as_str()))
        .texts("column_name", |at| of(at).map_or("", |(_, _, name, ..)| name.as_str()))
        .numbers("ordinal_position", |at| of(at).map_or(0, |(_, place, ..)| *place))
        .texts("is_nullable", |at| if of(at).is_some_and(|(.., is_required)| *is_required) { "NO" } else { "YES" })
        .texts("data_type", |at| of(at).map_or("text", |(_, _, _, of, _)| sql_name(of)))
        .texts("udt_name", |at| of(at).map_or("text", |(_, _, _, of, _)| of.name()).to_owned())
        .nulls(&["column_default", "character_maximum_length", "numeric_precision", "numeric_scale", "datetime_precision"])
}

fn information_schemata() -> Columns {
    Columns::of(SCHEMAS.len())
        .text("catalog_name", DATABASE)
        .texts("schema_name", |at| item(&SCHEMAS, at).map_or("", |schema| schema.1))
        .text("schema_owner", OWNER)
}
