//! Owns: statements of PostgreSQL's clients about the catalog, in words that the engine has.
//!
//! | words | become |
//! |---|---|
//! | `pg_class`, `information_schema.columns` | tables of `catalog` |
//! | `version()`, `current_schema()`, `pg_get_userbyid(x)`, `obj_description(x)` | the value that they have for every row |
//! | `'trade'::regclass`, `x::regtype`, `format_type(x, y)` | numbers, and names by numbers |
//! | `OPERATOR(pg_catalog.~)`, `COLLATE pg_catalog.default` | the operator, nothing |
//! | a subquery of a table that is always empty | null, false |
//!
//! What must hold: a statement that has none of these words stays as it is. One that cannot be parsed here stays as it is.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Array, BinaryOperator, CaseWhen, CastKind, DataType, Expr, Function, FunctionArguments, GroupByExpr, Ident, JoinOperator,
    ObjectName, ObjectNamePart, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Statement, TableFactor,
    Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use pgwire::error::PgWireResult;

use crate::dialect::{arguments, call, texts};
use crate::engine::Moment;
use crate::postgres::catalog;
use crate::postgres::commands::{self, VERSION, Values};

/// What statements ask for.
pub(super) struct Known<'a> {
    /// The client's user.
    pub user: &'a str,
    /// Its settings.
    pub values: &'a Values,
    /// The store.
    pub moment: &'a Moment,
}

/// Words without which a statement stays as it is.
const WORDS: [&str; 12] = [
    "pg_",
    "regclass",
    "regtype",
    "information_schema",
    "current_schema",
    "current_database",
    "current_catalog",
    "current_setting",
    "current_user",
    "session_user",
    "version",
    "set_config",
];

/// Whether `sql` may have words to rewrite.
pub(super) fn concerns(sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    WORDS.iter().any(|word| sql.contains(word)) || sql.contains("quote_ident")
}

/// `sql` in words that the engine has; `None` if it is no question that can be parsed here.
pub(super) fn rewritten(sql: &str, known: &Known<'_>) -> Option<String> {
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
    let mut statement = statements.pop().filter(|_| statements.is_empty())?;
    let Statement::Query(query) = &mut statement else { return None };
    if is_empty(query) {
        return Some(nothing(&query.body));
    }
    name(&mut query.body);
    // It never breaks.
    let _continued = statement.visit(&mut Rewriter { known, tables: catalog::numbered(known.moment) });
    Some(statement.to_string())
}

/// `sql` with its parameters cast to `types`, where there is one.
///
/// # Errors
/// It is no SQL.
pub(super) fn typed(sql: &str, types: &[Option<&str>]) -> PgWireResult<String> {
    let written = |token: Token| match &token {
        Token::Placeholder(name) => {
            let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
            match number.and_then(|number| types.get(number.checked_sub(1)?).copied().flatten()) {
                Some(of) => format!("CAST({name} AS {of})"),
                None => token.to_string(),
            }
        }
        _ => token.to_string(),
    };
    Ok(commands::tokens(sql)?.into_iter().map(written).collect())
}

/// The last part of a name, in lower case unless it is quoted.
fn last(name: &ObjectName) -> String {
    name.0.last().and_then(ObjectNamePart::as_ident).map_or_else(String::new, folded)
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

/// Whether `name` is in the catalog's schema, or in none.
fn is_unqualified(name: &ObjectName) -> bool {
    let schema = name.0.len().checked_sub(2).and_then(|at| name.0.get(at)).and_then(ObjectNamePart::as_ident).map(folded);
    schema.is_none_or(|schema| schema == "pg_catalog")
}

fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).into())
}

fn number(value: i64) -> Expr {
    Expr::Value(Value::Number(value.to_string(), false).into())
}

fn flag(value: bool) -> Expr {
    Expr::Value(Value::Boolean(value).into())
}

fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

fn null() -> Expr {
    cast(Expr::Value(Value::Null.into()), DataType::Text)
}

/// The text of a literal.
fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        Expr::Nested(inner) => literal(inner),
        _ => None,
    }
}

/// Whether `query` reads a table that is always empty, so that it has no row.
fn is_empty(query: &Query) -> bool {
    query.with.is_none() && is_empty_body(&query.body)
}

fn is_empty_body(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => is_empty_select(select),
        SetExpr::Query(query) => is_empty(query),
        SetExpr::SetOperation { left, right, .. } => is_empty_body(left) && is_empty_body(right),
        _ => false,
    }
}

fn is_empty_select(select: &Select) -> bool {
    let is_plain = matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let aggregate = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => has_aggregate(expr),
        _ => false,
    };
    if !is_plain || select.projection.iter().any(aggregate) {
        return false;
    }
    let is_empty = |factor: &TableFactor| match factor {
        TableFactor::Table { name, args: None, .. } => is_unqualified(name) && catalog::is_empty(&last(name)),
        TableFactor::Derived { subquery, .. } => self::is_empty(subquery),
        _ => false,
    };
    select.from.iter().any(|from| {
        let keeps_left = |operator: &JoinOperator| {
            matches!(
                operator,
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::Left(_) | JoinOperator::LeftOuter(_)
            ) || matches!(operator, JoinOperator::CrossJoin(_))
        };
        let is_inner = |operator: &JoinOperator| {
            matches!(operator, JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_))
        };
        let is_known = from.joins.iter().all(|join| keeps_left(&join.join_operator));
        let joined = from.joins.iter().any(|join| is_inner(&join.join_operator) && is_empty(&join.relation));
        is_known && (is_empty(&from.relation) || joined)
    })
}

fn has_aggregate(expr: &Expr) -> bool {
    const NAMES: [&str; 11] =
        ["count", "max", "min", "sum", "avg", "array_agg", "string_agg", "bool_or", "bool_and", "every", "json_agg"];
    /// How deep in subqueries, whose aggregates are their own.
    struct Finder(usize);
    impl datafusion::sql::sqlparser::ast::Visitor for Finder {
        type Break = ();

        fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
            self.0 += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
            self.0 = self.0.saturating_sub(1);
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(function) if self.0 == 0 && NAMES.contains(&last(&function.name).as_str()) => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    datafusion::sql::sqlparser::ast::Visit::visit(expr, &mut Finder(0)).is_break()
}

/// A statement that has the columns of `body` and no row.
fn nothing(body: &SetExpr) -> String {
    let mut select = body;
    while let SetExpr::SetOperation { left, .. } = select {
        select = left;
    }
    let SetExpr::Select(select) = select else { return "SELECT NULL AS nothing WHERE false".to_owned() };
    let mut names: Vec<String> = Vec::new();
    for item in &select.projection {
        let name = match item {
            SelectItem::UnnamedExpr(expr) => name_of(expr),
            SelectItem::ExprWithAlias { alias, .. } => folded(alias),
            _ => "?column?".to_owned(),
        };
        names.push(unique(name, &names));
    }
    let columns: Vec<String> =
        names.iter().map(|name| format!("CAST(NULL AS TEXT) AS \"{}\"", name.replace('"', "\"\""))).collect();
    format!("SELECT {} WHERE false", columns.join(", "))
}

fn unique(name: String, others: &[String]) -> String {
    if !others.contains(&name) {
        return name;
    }
    (2usize..).map(|number| format!("{name}_{number}")).find(|name| !others.contains(name)).unwrap_or(name)
}

/// The name that PostgreSQL gives a column.
fn name_of(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(name) => folded(name),
        Expr::CompoundIdentifier(parts) => parts.last().map_or_else(String::new, folded),
        Expr::Function(function) => last(&function.name),
        Expr::Cast { expr, data_type, .. } => match name_of(expr).as_str() {
            "?column?" => data_type.to_string().to_ascii_lowercase(),
            name => name.to_owned(),
        },
        Expr::Case { .. } => "case".to_owned(),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => name_of(inner),
        Expr::Exists { .. } => "exists".to_owned(),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first() {
                Some(SelectItem::UnnamedExpr(expr)) => name_of(expr),
                Some(SelectItem::ExprWithAlias { alias, .. }) => folded(alias),
                _ => "?column?".to_owned(),
            },
            _ => "?column?".to_owned(),
        },
        _ => "?column?".to_owned(),
    }
}

/// Names the columns of `body` as PostgreSQL does; each name is there once.
fn name(body: &mut SetExpr) {
    let SetExpr::Select(select) = body else {
        if let SetExpr::SetOperation { left, .. } = body {
            name(left);
        }
        return;
    };
    let wildcards: Vec<String> = select
        .projection
        .iter()
        .filter_map(|item| match item {
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => Some(last(name)),
            _ => None,
        })
        .collect();
    let mut names: Vec<String> = Vec::new();
    for item in &mut select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => {
                let plain = name_of(expr);
                let table = match &*expr {
                    Expr::CompoundIdentifier(parts) => parts.len().checked_sub(2).and_then(|at| parts.get(at)).map(folded),
                    _ => None,
                };
                let is_column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
                let is_twice = table.is_some_and(|table| wildcards.contains(&table));
                let name = unique(if is_twice { format!("{plain}_1") } else { plain.clone() }, &names);
                if !is_column || name != plain {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', name.clone()) };
                }
                names.push(name);
            }
            SelectItem::ExprWithAlias { alias, .. } => names.push(folded(alias)),
            _ => {}
        }
    }
}

struct Rewriter<'a> {
    known: &'a Known<'a>,
    tables: Vec<(i64, String)>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args, .. } = factor
            && args.is_some()
            && last(name) == "pg_get_keywords"
        {
            *args = None;
            *name = ObjectName::from(vec![Ident::new("pg_keywords")]);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        let parts: Vec<String> = relation.0.iter().filter_map(|part| part.as_ident().map(folded)).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let table = match parts.as_slice() {
            [.., "information_schema", name] => format!("information_{name}"),
            [.., "pg_catalog", name] => (*name).to_owned(),
            [name] if name.starts_with("pg_") && catalog::has(name) => (*name).to_owned(),
            _ => return ControlFlow::Continue(()),
        };
        *relation = ObjectName::from(vec![Ident::new("pg_catalog"), Ident::new(table)]);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Subquery(query) = expr {
            one_row(query);
        }
        let replaced = match &*expr {
            Expr::Subquery(query) if is_empty(query) => Some(null()),
            Expr::Exists { subquery, negated } if is_empty(subquery) => Some(flag(*negated)),
            Expr::InSubquery { subquery, negated, expr } => {
                if is_empty(subquery) {
                    Some(flag(*negated))
                } else if subquery.to_string().contains("search_path") {
                    Some(Expr::InList { expr: expr.clone(), list: vec![text("public")], negated: *negated })
                } else {
                    None
                }
            }
            // `ARRAY(SELECT ...)` is asked for access rights and options, which nothing has.
            Expr::Function(Function { args: FunctionArguments::Subquery(query), .. })
                if is_empty(query) || query.to_string().contains("pg_") || query.to_string().contains("options") =>
            {
                Some(null())
            }
            _ => None,
        };
        if let Some(replaced) = replaced {
            *expr = replaced;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let replaced = match &mut *expr {
            Expr::Function(function) => self.function(function),
            Expr::Cast { expr, data_type, .. } => self.cast(expr, data_type),
            Expr::Collate { expr, .. } => Some(expr.as_ref().clone()),
            Expr::BinaryOp { op, .. } => {
                if let BinaryOperator::PGCustomBinaryOperator(parts) = op
                    && let Some(plain) = parts.last().and_then(|sign| operator(sign))
                {
                    *op = plain;
                }
                None
            }
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => in_list(left, right, false),
            Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => in_list(left, right, true),
            _ => None,
        };
        if let Some(replaced) = replaced {
            *expr = replaced;
        }
        ControlFlow::Continue(())
    }
}

/// Whether `expr` is one of the lists that nothing has: access rights and options.
fn is_nothing(expr: &Expr) -> bool {
    let text = expr.to_string().to_ascii_lowercase();
    *expr == null()
        || ["acl", "reloptions", "attoptions", "spcoptions", "srvoptions", "setconfig"].iter().any(|list| text.contains(list))
}

/// A subquery that asks the catalog for one value of one row, so that the planner sees that it is one.
fn one_row(query: &mut Query) {
    if query.limit_clause.is_some() || is_empty(query) {
        return;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    let is_catalog = select.from.iter().all(
        |from| matches!(&from.relation, TableFactor::Table { name, .. } if is_unqualified(name) && catalog::has(&last(name))),
    );
    let is_plain = matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    if let [SelectItem::UnnamedExpr(expr)] = select.projection.as_mut_slice()
        && is_catalog
        && is_plain
        && !select.from.is_empty()
        && !has_aggregate(expr)
    {
        *expr = call("max", vec![expr.clone()]);
    }
}

fn operator(sign: &str) -> Option<BinaryOperator> {
    Some(match sign {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "||" => BinaryOperator::StringConcat,
        _ => return None,
    })
}

/// `x = ANY (list)` as `x IN (list)`.
fn in_list(left: &Expr, right: &Expr, negated: bool) -> Option<Expr> {
    let list = match right {
        Expr::Array(array) => array.elem.clone(),
        Expr::Function(function) if last(&function.name) == "current_schemas" => vec![text("public"), text("pg_catalog")],
        Expr::Nested(inner) => return in_list(left, inner, negated),
        Expr::Cast { expr, .. } => return in_list(left, expr, negated),
        other => {
            let list = literal(other)?.strip_prefix('{')?.strip_suffix('}')?;
            list.split(',').map(|part| text(part.trim().trim_matches('"'))).collect()
        }
    };
    Some(Expr::InList { expr: Box::new(left.clone()), list, negated })
}

impl Rewriter<'_> {
    /// The number of the table `name`, which may be quoted and have a schema.
    fn number_of(&self, name: &str) -> Option<i64> {
        let name = name.rsplit('.').next().unwrap_or(name).trim_matches('"');
        self.tables.iter().find(|(_, table)| table == name).map(|(number, _)| *number)
    }

    fn cast(&self, expr: &Expr, data_type: &mut DataType) -> Option<Expr> {
        let name = match &*data_type {
            DataType::Custom(name, _) => last(name),
            DataType::Regclass => "regclass".to_owned(),
            DataType::Array(_) => return None,
            other => other.to_string().to_ascii_lowercase(),
        };
        match name.as_str() {
            "regclass" => Some(match literal(expr) {
                Some(name) => self.number_of(name).map_or_else(null, number),
                None => by_number(expr, self.tables.iter().map(|(number, name)| (*number, name.as_str()))),
            }),
            "regtype" => Some(by_number(expr, catalog::types())),
            "regnamespace" => Some(match literal(expr) {
                Some(name) => {
                    catalog::SCHEMAS.iter().find(|schema| schema.1 == name).map_or_else(null, |schema| number(schema.0))
                }
                None => by_number(expr, catalog::SCHEMAS),
            }),
            "oid" | "xid" | "cid" | "int8" | "int4" | "int2" => {
                *data_type = DataType::BigInt(None);
                None
            }
            "text" | "name" | "char" | "\"char\"" | "varchar" | "regproc" | "regprocedure" | "aclitem" => {
                *data_type = DataType::Text;
                None
            }
            "bool" => {
                *data_type = DataType::Boolean;
                None
            }
            _ => None,
        }
    }

    /// The value of a function that has the same for all rows, or whose work is done by other words.
    fn function(&self, function: &mut Function) -> Option<Expr> {
        if !is_unqualified(&function.name) {
            return None;
        }
        let name = last(&function.name);
        let args = arguments(function);
        let replaced = match name.as_str() {
            "current_schema" => text("public"),
            "current_database" | "current_catalog" => text(catalog::DATABASE),
            "version" => text(&format!("PostgreSQL {VERSION} (tapestore {})", env!("CARGO_PKG_VERSION"))),
            "current_user" | "session_user" | "user" | "current_role" => text(self.known.user),
            "pg_get_userbyid" => text(catalog::OWNER),
            "pg_encoding_to_char" => text("UTF8"),
            "pg_size_pretty" => text(""),
            "current_setting" => {
                texts(function).first().and_then(|name| self.known.values.get(name)).map_or_else(null, |v| text(&v))
            }
            "set_config" => texts(function).get(1).map_or_else(null, |value| text(value)),
            "format_type" => by_number(args.first()?, catalog::types()),
            "parse_ident" => {
                let parts = literal(args.first()?)?.split('.').map(|part| text(part.trim_matches('"'))).collect();
                Expr::Array(Array { elem: parts, named: true })
            }
            "quote_ident" => args.first()?.clone(),
            "to_regclass" => self.number_of(literal(args.first()?)?).map_or_else(null, number),
            "array_to_string" if args.first().is_some_and(is_nothing) => null(),
            "pg_is_in_recovery" | "pg_is_other_temp_schema" | "pg_relation_is_publishable" => flag(false),
            "pg_backend_pid"
            | "pg_my_temp_schema"
            | "txid_current"
            | "pg_relation_size"
            | "pg_total_relation_size"
            | "pg_table_size"
            | "pg_database_size"
            | "pg_indexes_size" => number(0),
            "obj_description"
            | "col_description"
            | "shobj_description"
            | "pg_get_expr"
            | "pg_get_viewdef"
            | "pg_get_indexdef"
            | "pg_get_constraintdef"
            | "pg_get_partkeydef"
            | "pg_get_serial_sequence"
            | "pg_tablespace_location"
            | "inet_server_addr"
            | "inet_server_port"
            | "pg_postmaster_start_time"
            | "pg_get_ruledef"
            | "pg_get_triggerdef" => null(),
            name if name.starts_with("has_") && name.ends_with("_privilege") => flag(true),
            name if name.starts_with("pg_") && name.ends_with("_is_visible") => flag(true),
            _ => {
                // The engine's functions have no schema.
                function.name = ObjectName::from(vec![Ident::new(name)]);
                return None;
            }
        };
        Some(replaced)
    }
}

/// The name of what has the number `expr`.
fn by_number<'n>(expr: &Expr, names: impl IntoIterator<Item = (i64, &'n str)>) -> Expr {
    let when = |(of, name): (i64, &str)| CaseWhen { condition: number(of), result: text(name) };
    let otherwise = cast(expr.clone(), DataType::Text);
    Expr::Case {
        case_token: datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
        end_token: datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
        operand: Some(Box::new(cast(expr.clone(), DataType::BigInt(None)))),
        conditions: names.into_iter().map(when).collect(),
        else_result: Some(Box::new(otherwise)),
    }
}
