//! Owns: the second step: what the first one has left in the tree of a statement becomes a plan's groups, functions and joins.
//!
//! What must hold: rows of `SAMPLE BY` are grouped by every column without an aggregate, and no time of a row is left among the
//! keys but the start of its bucket.

use std::ops::ControlFlow;

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, Join,
    JoinConstraint, JoinOperator, ObjectName, OrderBy, OrderByExpr, OrderByKind, OrderByOptions, Query, Select, SelectItem,
    SetExpr, TableAlias, TableFactor, TableWithJoins, Value, VisitMut, VisitorMut,
};

use super::words::{FILL, LATEST_ON, SAMPLE_BY, wrong};

/// Expands what the first step has left in the tree of a statement.
pub(super) struct Expander<'f> {
    pub(super) is_aggregate: &'f dyn Fn(&str) -> bool,
    pub(super) error: Option<DataFusionError>,
}

impl VisitorMut for Expander<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && name_of(function) == "ohlc"
        {
            match <[Expr; 2]>::try_from(arguments(function)) {
                Ok([price, size]) => *expr = ohlc(&price, size),
                Err(_) => {
                    self.error.get_or_insert(wrong("ohlc needs a price and a size: ohlc(price, size)"));
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        name(&mut query.body);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Err(error) = super::windows::group(query, self.is_aggregate) {
            self.error.get_or_insert(error);
        }
        let is_sampled = is_sampled(&query.body);
        if let Err(error) = self.body(&mut query.body) {
            self.error.get_or_insert(error);
        }
        if is_sampled && query.order_by.is_none() {
            query.order_by = by_time(&query.body);
        }
        ControlFlow::Continue(())
    }
}

/// Whether `body` is a select with `SAMPLE BY`.
fn is_sampled(body: &SetExpr) -> bool {
    let SetExpr::Select(select) = body else { return false };
    let GroupByExpr::Expressions(keys, _) = &select.group_by else { return false };
    matches!(keys.as_slice(), [Expr::Function(function)] if name_of(function) == SAMPLE_BY)
}

/// The order by time of a select that was sampled, if it has the time.
fn by_time(body: &SetExpr) -> Option<OrderBy> {
    let SetExpr::Select(select) = body else { return None };
    let name = select.projection.iter().find_map(|item| match item {
        SelectItem::ExprWithAlias { expr: Expr::Function(function), alias } if name_of(function) == "time_bucket" => {
            Some(alias.clone())
        }
        // Filled: the columns are those of the select within.
        SelectItem::Wildcard(_) => Some(Ident::new("time")),
        _ => None,
    })?;
    let options = OrderByOptions { asc: Some(true), nulls_first: None };
    let expr = OrderByExpr { expr: Expr::Identifier(name), options, with_fill: None };
    Some(OrderBy { kind: OrderByKind::Expressions(vec![expr]), interpolate: None })
}

/// Calls columns as they are written, not as the planner would call them.
fn name(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            for item in &mut select.projection {
                if let SelectItem::UnnamedExpr(expr) = item
                    && !matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_))
                {
                    let alias = Ident::with_quote('"', expr.to_string().to_lowercase());
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
            }
        }
        SetExpr::SetOperation { left, right, .. } => {
            name(left);
            name(right);
        }
        _ => {}
    }
}

/// The name of `function`.
pub fn name_of(function: &Function) -> String {
    function.name.to_string().to_ascii_lowercase()
}

/// The arguments of `function`.
pub fn arguments(function: &Function) -> Vec<Expr> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    let of = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    list.args.iter().filter_map(of).collect()
}

/// The arguments of `function` that are texts.
pub fn texts(function: &Function) -> Vec<String> {
    let text = |expr: &Expr| match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    };
    arguments(function).iter().filter_map(text).collect()
}

fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).into())
}

/// A call of the function `name`.
pub fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Open, high, low, close, volume and number of trades, as a struct.
fn ohlc(price: &Expr, size: Expr) -> Expr {
    let of = |name: &str| call(name, vec![price.clone()]);
    let fields = [
        ("open", of("first")),
        ("high", of("max")),
        ("low", of("min")),
        ("close", of("last")),
        ("volume", call("sum", vec![size])),
        ("trades", of("count")),
    ];
    call("named_struct", fields.into_iter().flat_map(|(name, value)| [text(name), value]).collect())
}

/// `input` as a table that the planner of relations makes of it: `function` is what.
fn relation(input: TableFactor, function: Expr) -> TableWithJoins {
    let join = Join {
        relation: input.clone(),
        global: false,
        join_operator: JoinOperator::AsOf { match_condition: function, constraint: JoinConstraint::None },
    };
    let nested = TableWithJoins { relation: input, joins: vec![join] };
    let relation = TableFactor::NestedJoin { table_with_joins: Box::new(nested), alias: None };
    TableWithJoins { relation, joins: Vec::new() }
}

fn derived(select: Select, name: &str) -> TableFactor {
    let query = Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(select))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    };
    let alias = Some(TableAlias { explicit: true, name: Ident::new(name), columns: Vec::new(), at: None });
    TableFactor::Derived { lateral: false, subquery: Box::new(query), alias, sample: None }
}

impl Expander<'_> {
    fn body(&self, body: &mut SetExpr) -> Result<()> {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left)?;
                self.body(right)
            }
            // Visited as a query of its own.
            _ => Ok(()),
        }
    }

    fn select(&self, select: &mut Select) -> Result<()> {
        let GroupByExpr::Expressions(keys, _) = &select.group_by else { return Ok(()) };
        let [Expr::Function(function)] = keys.as_slice() else { return Ok(()) };
        match name_of(function).as_str() {
            SAMPLE_BY => {
                let function = function.clone();
                self.sample(select, &function)
            }
            LATEST_ON => {
                let function = Expr::Function(function.clone());
                latest(select, function);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn has_aggregate(&self, expr: &Expr) -> bool {
        struct Finder<'f>(&'f dyn Fn(&str) -> bool);
        impl datafusion::sql::sqlparser::ast::Visitor for Finder<'_> {
            type Break = ();

            fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
                match expr {
                    Expr::Function(function) if function.over.is_none() && (self.0)(&name_of(function)) => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            }
        }
        datafusion::sql::sqlparser::ast::Visit::visit(expr, &mut Finder(self.is_aggregate)).is_break()
    }

    fn sample(&self, select: &mut Select, function: &Function) -> Result<()> {
        let [interval, fill, align, zone] =
            <[String; 4]>::try_from(texts(function)).map_err(|_| wrong("SAMPLE BY needs a length of time, like SAMPLE BY 1m"))?;
        let time = time_of(select);
        let mut args = vec![text(&interval), time.clone()];
        if align == "first" {
            args.push(text(""));
            args.push(first_time(select, &time));
        } else if !zone.is_empty() {
            args.push(text(&zone));
        }
        let bucket = call("time_bucket", args);
        let mut keys = vec![bucket.clone()];
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && is_time(expr, &time)
            {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::new("time") };
            }
            let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
                return Err(wrong("SAMPLE BY needs columns and aggregates, not *, like SELECT time, symbol, last(price)"));
            };
            if self.has_aggregate(expr) {
                continue;
            }
            // The time of a row of the answer is the start of its bucket.
            replace_time(expr, &time, &bucket);
            if !is_of_bucket(expr, &bucket) {
                keys.push(expr.clone());
            }
        }
        select.group_by = GroupByExpr::Expressions(keys, Vec::new());
        if !fill.is_empty() {
            let has_time =
                select.projection.iter().any(|item| matches!(item, SelectItem::ExprWithAlias { expr, .. } if *expr == bucket));
            if !has_time {
                return Err(wrong("SAMPLE BY ... FILL needs the time among the columns, like SELECT time, symbol, last(price)"));
            }
            let aggregates: Vec<&str> = select
                .projection
                .iter()
                .map(|item| match item {
                    SelectItem::ExprWithAlias { expr, .. } if *expr == bucket => "time",
                    SelectItem::ExprWithAlias { expr, .. } | SelectItem::UnnamedExpr(expr) if self.has_aggregate(expr) => "value",
                    _ => "key",
                })
                .collect();
            let fill = call(FILL, vec![text(&interval), text(&fill), text(&zone), text(&aggregates.join(","))]);
            let inner = select.clone();
            *select = Select {
                projection: vec![SelectItem::Wildcard(Default::default())],
                from: vec![relation(derived(inner, "sampled"), fill)],
                selection: None,
                group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
                having: None,
                distinct: None,
                ..select.clone()
            };
        }
        Ok(())
    }
}

/// The time by which `select` is sampled: the column `time` of its first table.
fn time_of(select: &Select) -> Expr {
    let qualified = select.from.first().filter(|from| !from.joins.is_empty()).and_then(|from| match &from.relation {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Some(alias.name.clone())
        }
        TableFactor::Table { name, .. } => name.0.last().and_then(|part| part.as_ident().cloned()),
        _ => None,
    });
    match qualified {
        Some(table) => Expr::CompoundIdentifier(vec![table, Ident::new("time")]),
        None => Expr::Identifier(Ident::new("time")),
    }
}

fn is_time(expr: &Expr, time: &Expr) -> bool {
    match (expr, time) {
        (Expr::Identifier(name), _) => name.value.eq_ignore_ascii_case("time"),
        (Expr::CompoundIdentifier(parts), Expr::CompoundIdentifier(_)) => expr == time && !parts.is_empty(),
        (Expr::CompoundIdentifier(parts), _) => parts.last().is_some_and(|name| name.value.eq_ignore_ascii_case("time")),
        _ => false,
    }
}

/// Puts `bucket` in the place of each time in `expr`.
fn replace_time(expr: &mut Expr, time: &Expr, bucket: &Expr) {
    struct Replace<'e>(&'e Expr, &'e Expr);
    impl VisitorMut for Replace<'_> {
        type Break = ();

        // After its parts: the bucket has a time of its own.
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if is_time(expr, self.0) {
                *expr = self.1.clone();
            }
            ControlFlow::Continue(())
        }
    }
    // It never breaks.
    let _continued = expr.visit(&mut Replace(time, bucket));
}

/// Whether `expr` follows from `bucket`: it has no other column.
fn is_of_bucket(expr: &Expr, bucket: &Expr) -> bool {
    struct Columns<'e>(&'e Expr);
    impl VisitorMut for Columns<'_> {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if expr == self.0 {
                *expr = text("");
            }
            match expr {
                Expr::Identifier(_) | Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expr.clone().visit(&mut Columns(bucket)).is_continue()
}

/// The time of the first row of `select`.
fn first_time(select: &Select, time: &Expr) -> Expr {
    let first = Select {
        projection: vec![SelectItem::UnnamedExpr(call("min", vec![time.clone()]))],
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        having: None,
        distinct: None,
        ..select.clone()
    };
    match derived(first, "first") {
        TableFactor::Derived { subquery, .. } => Expr::Subquery(subquery),
        _ => time.clone(),
    }
}

/// `SELECT x FROM t WHERE c LATEST ON ...` becomes `SELECT x FROM latest((SELECT * FROM t WHERE c))`.
fn latest(select: &mut Select, function: Expr) {
    let inner = Select {
        projection: vec![SelectItem::Wildcard(Default::default())],
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        having: None,
        distinct: None,
        ..select.clone()
    };
    let name = match select.from.first().map(|from| &from.relation) {
        Some(TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. }) => {
            alias.name.value.clone()
        }
        Some(TableFactor::Table { name, .. }) => {
            name.0.last().and_then(|part| part.as_ident()).map_or_else(|| "latest".to_owned(), |name| name.value.clone())
        }
        _ => "latest".to_owned(),
    };
    select.from = vec![relation(derived(inner, &name), function)];
    select.selection = None;
    select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
}
