//! Owns: the words of time-series SQL that the parser does not have: `SAMPLE BY`, `LATEST ON`, `TOLERANCE`.
//!
//! They are rewritten in two steps. Before the parser, by tokens: `SAMPLE BY 1m FILL (PREV)` becomes `GROUP BY
//! sample_by('1m', 'PREV', ...)`, at the same place in a statement; `LATEST ON time PARTITION BY symbol` becomes `GROUP BY
//! latest_on(time, symbol)`; `TOLERANCE 5s` moves into the match condition. After the parser, in its tree: a group by
//! `sample_by` becomes one by the keys and a bucket of the time, `latest_on` becomes a join of the planner of relations.
//!
//! What must hold: text in quotes and comments is never changed. A statement without these words is parsed as it is.

use std::ops::ControlFlow;

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, Join,
    JoinConstraint, JoinOperator, ObjectName, Query, Select, SelectItem, SetExpr, TableAlias, TableFactor, TableWithJoins, Value,
    VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::asof::node::{TOLERANCE, wrap};
use crate::depth;
use crate::interval::Interval;

/// The function that carries `SAMPLE BY` through the parser.
const SAMPLE_BY: &str = "sample_by";
/// The function that carries `LATEST ON` through the parser, and its match condition.
pub const LATEST_ON: &str = "latest_on";
/// The function that carries `FILL`, as the match condition of a join of the planner of relations.
pub const FILL: &str = "fill_gaps";

fn wrong(reason: impl Into<String>) -> DataFusionError {
    DataFusionError::Plan(reason.into())
}

/// Parses `sql`, one statement. `is_aggregate` tells the names of aggregate functions.
///
/// # Errors
/// It is no statement, or a word of time-series SQL is used wrongly.
pub fn parse(sql: &str, is_aggregate: &dyn Fn(&str) -> bool) -> Result<Statement> {
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, sql).tokenize().map_err(|error| wrong(error.to_string()))?;
    depth::check(&tokens)?;
    let text = rewritten(&tokens)?;
    let text = text.as_deref().unwrap_or(sql);
    let mut statements = DFParserBuilder::new(text).with_dialect(&dialect).build()?.parse_statements()?;
    let statement = statements.pop_front().ok_or_else(|| wrong("there is no statement"))?;
    if !statements.is_empty() {
        return Err(wrong("these are several statements; send them one by one"));
    }
    expand(statement, is_aggregate)
}

fn expand(statement: Statement, is_aggregate: &dyn Fn(&str) -> bool) -> Result<Statement> {
    match statement {
        Statement::Statement(mut statement) => {
            let mut expander = Expander { is_aggregate, error: None };
            // It never breaks; an error is kept.
            let _continued = statement.visit(&mut expander);
            if let Some(error) = expander.error {
                return Err(error);
            }
            wrap(statement.as_mut());
            Ok(Statement::Statement(statement))
        }
        Statement::Explain(mut explain) => {
            explain.statement = Box::new(expand(*explain.statement, is_aggregate)?);
            Ok(Statement::Explain(explain))
        }
        other => Ok(other),
    }
}

/// The significant tokens: no blanks, no comments.
struct Cursor<'t> {
    tokens: &'t [Token],
    /// Places of the significant ones.
    places: Vec<usize>,
    at: usize,
}

impl<'t> Cursor<'t> {
    fn new(tokens: &'t [Token]) -> Cursor<'t> {
        let places = (0..tokens.len()).filter(|at| !matches!(tokens.get(*at), Some(Token::Whitespace(_) | Token::EOF)));
        Cursor { tokens, places: places.collect(), at: 0 }
    }

    fn peek(&self, ahead: usize) -> Option<&'t Token> {
        self.tokens.get(*self.places.get(self.at + ahead)?)
    }

    fn is_word(&self, ahead: usize, word: &str) -> bool {
        matches!(self.peek(ahead), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
    }

    fn take_words(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(ahead, word)| self.is_word(ahead, word));
        if found {
            self.at += words.len();
        }
        found
    }

    fn next(&mut self) -> Option<&'t Token> {
        let token = self.peek(0);
        self.at += 1;
        token
    }

    /// A length of time: `5s`, `'5s'`, `500 ms`.
    fn interval(&mut self, after: &str) -> Result<String> {
        let text = match (self.next(), self.peek(0)) {
            (Some(Token::SingleQuotedString(text)), _) => text.clone(),
            (Some(Token::Number(number, _)), Some(Token::Word(unit))) => {
                self.at += 1;
                format!("{number}{}", unit.value)
            }
            (Some(Token::Word(unit)), _) => format!("1{}", unit.value),
            _ => return Err(wrong(format!("{after} needs a length of time, like {after} 1m"))),
        };
        text.parse::<Interval>().map_err(|reason| wrong(format!("{after} {text}: {reason}")))?;
        Ok(text)
    }

    /// The text of the tokens in the parentheses that open here.
    fn parenthesised(&mut self, after: &str) -> Result<String> {
        if self.next() != Some(&Token::LParen) {
            return Err(wrong(format!("{after} needs parentheses, like {after} (PREV)")));
        }
        let (mut depth, mut text) = (1, String::new());
        while let Some(token) = self.next() {
            depth += match token {
                Token::LParen => 1,
                Token::RParen => -1,
                _ => 0,
            };
            if depth == 0 {
                return Ok(text);
            }
            text.push_str(&token.to_string());
        }
        Err(wrong(format!("the parentheses after {after} do not close")))
    }

    fn text(&mut self, after: &str) -> Result<String> {
        match self.next() {
            Some(Token::SingleQuotedString(text)) => Ok(text.clone()),
            _ => Err(wrong(format!("{after} needs a text in quotes"))),
        }
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The statement of `tokens` without the words of time-series SQL; `None` if it has none of them.
fn rewritten(tokens: &[Token]) -> Result<Option<String>> {
    // Instead of the significant tokens from the first to before the second: this text.
    let mut changes: Vec<(usize, usize, String)> = Vec::new();
    let mut cursor = Cursor::new(tokens);
    let mut match_ends: Option<usize> = None;
    while cursor.at < cursor.places.len() {
        let start = cursor.at;
        if cursor.take_words(&["MATCH_CONDITION"]) {
            cursor.parenthesised("MATCH_CONDITION")?;
            match_ends = Some(cursor.at - 1);
        } else if match_ends.is_some() && cursor.is_word(0, "TOLERANCE") && starts_interval(cursor.peek(1)) {
            cursor.at += 1;
            let interval = cursor.interval("TOLERANCE")?;
            let ns = interval.parse::<Interval>().ok().and_then(Interval::fixed);
            let ns = ns.ok_or_else(|| wrong("a TOLERANCE is a fixed length of time, like 5s"))?;
            if let Some(end) = match_ends.take() {
                changes.push((end, end, format!(" AND {TOLERANCE}({ns}) ")));
            }
            changes.push((start, cursor.at, String::new()));
        } else if cursor.take_words(&["SAMPLE", "BY"]) {
            let text = sample_by(&mut cursor)?;
            changes.push((start, cursor.at, text));
        } else if cursor.take_words(&["LATEST", "ON"]) {
            let text = latest_on(&mut cursor)?;
            changes.push((start, cursor.at, text));
        } else {
            cursor.at += 1;
        }
    }
    if changes.is_empty() {
        return Ok(None);
    }
    changes.sort_by_key(|(from, to, _)| (*from, *to));
    let place = |at: usize| cursor.places.get(at).copied().unwrap_or(tokens.len());
    let (mut text, mut done) = (String::new(), 0);
    for (from, to, change) in changes {
        tokens.get(done..place(from)).unwrap_or(&[]).iter().for_each(|token| text.push_str(&token.to_string()));
        text.push_str(&change);
        done = if from == to { place(from) } else { place(to - 1) + 1 };
    }
    tokens.get(done..).unwrap_or(&[]).iter().for_each(|token| text.push_str(&token.to_string()));
    Ok(Some(text))
}

fn starts_interval(token: Option<&Token>) -> bool {
    matches!(token, Some(Token::Number(..) | Token::SingleQuotedString(_)))
}

/// `SAMPLE BY 1m [FILL (...)] [ALIGN TO CALENDAR [TIME ZONE '...'] | ALIGN TO FIRST OBSERVATION]`.
fn sample_by(cursor: &mut Cursor<'_>) -> Result<String> {
    let interval = cursor.interval("SAMPLE BY")?;
    let (mut fill, mut align, mut zone) = (String::new(), "calendar", String::new());
    loop {
        if cursor.take_words(&["FILL"]) {
            fill = cursor.parenthesised("FILL")?;
        } else if cursor.take_words(&["ALIGN", "TO", "CALENDAR"]) {
            if cursor.take_words(&["TIME", "ZONE"]) {
                zone = cursor.text("TIME ZONE")?;
            }
        } else if cursor.take_words(&["ALIGN", "TO", "FIRST", "OBSERVATION"]) {
            align = "first";
        } else {
            break;
        }
    }
    Ok(format!("GROUP BY {SAMPLE_BY}({}, {}, {}, {})", quoted(&interval), quoted(&fill), quoted(align), quoted(&zone)))
}

/// `LATEST ON time PARTITION BY symbol, ...`.
fn latest_on(cursor: &mut Cursor<'_>) -> Result<String> {
    let mut name = |after: &str| -> Result<String> {
        let mut text = String::new();
        loop {
            match cursor.next() {
                Some(Token::Word(word)) => text.push_str(&word.to_string()),
                _ => return Err(wrong(format!("{after} needs a column"))),
            }
            if cursor.peek(0) != Some(&Token::Period) {
                return Ok(text);
            }
            text.push('.');
            cursor.at += 1;
        }
    };
    let mut columns = vec![name("LATEST ON")?];
    if !cursor.take_words(&["PARTITION", "BY"]) {
        return Err(wrong("LATEST ON needs its keys, like LATEST ON time PARTITION BY symbol"));
    }
    let mut name = |after: &str| -> Result<String> {
        match cursor.next() {
            Some(Token::Word(word)) => Ok(word.to_string()),
            _ => Err(wrong(format!("{after} needs a column"))),
        }
    };
    columns.push(name("PARTITION BY")?);
    while cursor.peek(0) == Some(&Token::Comma) {
        cursor.at += 1;
        let Some(Token::Word(word)) = cursor.next() else { return Err(wrong("PARTITION BY needs columns")) };
        columns.push(word.to_string());
    }
    Ok(format!("GROUP BY {LATEST_ON}({})", columns.join(", ")))
}

/// Expands what the first step has left in the tree of a statement.
struct Expander<'f> {
    is_aggregate: &'f dyn Fn(&str) -> bool,
    error: Option<DataFusionError>,
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

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Err(error) = self.body(&mut query.body) {
            self.error.get_or_insert(error);
        }
        ControlFlow::Continue(())
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

/// `input` as a table that the planner of relations makes of it: `function` tells what.
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
            if *expr != bucket {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sql: &str) -> String {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().unwrap();
        rewritten(&tokens).unwrap().unwrap_or_else(|| sql.to_owned())
    }

    #[test]
    fn words_of_time_series_become_functions_at_their_place() {
        assert_eq!(
            of("select last(price) from trade SAMPLE BY 1m FILL(PREV, 0) ALIGN TO CALENDAR TIME ZONE 'Europe/Paris' order by 1"),
            "select last(price) from trade GROUP BY sample_by('1m', 'PREV,0', 'calendar', 'Europe/Paris') order by 1"
        );
        assert_eq!(
            of("select * from quote where 1 = 1 latest on time partition by symbol, source limit 5"),
            "select * from quote where 1 = 1 GROUP BY latest_on(time, symbol, source) limit 5"
        );
        assert_eq!(
            of("select 1 from a asof join b match_condition (a.time >= b.time) on a.s = b.s tolerance 5s where x"),
            "select 1 from a asof join b match_condition (a.time >= b.time AND within_tolerance(5000000000) ) on a.s = b.s  where x"
        );
    }

    #[test]
    fn quotes_and_comments_and_columns_with_such_names_stay() {
        for sql in
            ["select 'SAMPLE BY 1m'", "select 1 -- latest on x\n", "select \"latest\" on_ from t", "select tolerance from t"]
        {
            assert_eq!(of(sql), sql);
        }
    }

    #[test]
    fn a_word_that_is_used_wrongly_is_an_error_that_shows_how() {
        let error = |sql: &str| parse(sql, &|name| name == "last").unwrap_err().to_string();
        assert!(error("select last(price) from trade sample by").contains("SAMPLE BY 1m"));
        assert!(error("select last(price) from trade sample by 7 parsecs").contains("parsecs"));
        assert!(error("select * from trade sample by 1m").contains("not *"));
        assert!(error("select * from trade latest on time").contains("PARTITION BY"));
        assert!(error("select 1; select 2").contains("one by one"));
    }
}
