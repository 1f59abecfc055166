//! Owns: the second step for window joins: the rows of a statement with one are grouped by the left row.
//!
//! What must hold: a statement without a `GROUP BY` of its own has one row for each left row, in the order of the join unless it
//! says another one.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::error::Result;
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, Ident, JoinOperator, OrderBy, OrderByExpr, OrderByKind, OrderByOptions, Query, Select, SelectItem,
    SetExpr, TableFactor, Visit, Visitor,
};

use super::tree::name_of;
use super::words::{WINDOW_JOIN, wrong};
use crate::window::ROW;

/// Groups the select of `query` by the left row, if it has a window join and no groups.
///
/// # Errors
/// It selects `*`, or a column of the right side without an aggregate.
pub(super) fn group(query: &mut Query, is_aggregate: &dyn Fn(&str) -> bool) -> Result<()> {
    let SetExpr::Select(select) = query.body.as_mut() else { return Ok(()) };
    let Some(right) = right_of(select) else { return Ok(()) };
    if !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty()) {
        return Ok(());
    }
    let mut columns = Columns { is_aggregate, depth: 0, found: BTreeSet::new() };
    let mut aliases = BTreeSet::new();
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => columns.add(expr),
            SelectItem::ExprWithAlias { expr, alias } => {
                aliases.insert(alias.value.to_lowercase());
                columns.add(expr);
            }
            _ => return Err(wrong("WINDOW JOIN needs columns and aggregates, not *, like SELECT t.time, t.price, avg(q.bid)")),
        }
    }
    select.having.iter().for_each(|having| columns.add(having));
    let mut found = columns.found;
    let mut of_order = Columns { is_aggregate, depth: 0, found: BTreeSet::new() };
    if let Some(OrderBy { kind: OrderByKind::Expressions(order), .. }) = &query.order_by {
        order.iter().for_each(|part| of_order.add(&part.expr));
    }
    let is_alias = |column: &[Ident]| matches!(column, [name] if aliases.contains(&name.value.to_lowercase()));
    found.extend(of_order.found.into_iter().filter(|column| !is_alias(column)));
    let is_right = |column: &[Ident]| matches!(column, [table, _, ..] if table.value.eq_ignore_ascii_case(&right));
    if let Some(column) = found.iter().find(|column| is_right(column)) {
        let column = column.iter().map(Ident::to_string).collect::<Vec<_>>().join(".");
        return Err(wrong(format!("{column} is of the right side of a WINDOW JOIN: it needs an aggregate, like avg({column})")));
    }
    let row = Expr::Identifier(Ident::new(ROW));
    let key = |parts: Vec<Ident>| match <[Ident; 1]>::try_from(parts) {
        Ok([name]) => Expr::Identifier(name),
        Err(parts) => Expr::CompoundIdentifier(parts),
    };
    let keys = std::iter::once(row.clone()).chain(found.into_iter().map(key)).collect();
    select.group_by = GroupByExpr::Expressions(keys, Vec::new());
    if query.order_by.is_none() && select.distinct.is_none() {
        let options = OrderByOptions { asc: Some(true), nulls_first: Some(false) };
        let by_row = OrderByExpr { expr: row, options, with_fill: None };
        query.order_by = Some(OrderBy { kind: OrderByKind::Expressions(vec![by_row]), interpolate: None });
    }
    Ok(())
}

/// The name of the right side of the window join of `select`, if it has one.
fn right_of(select: &Select) -> Option<String> {
    let joins = select.from.iter().flat_map(|from| &from.joins);
    let join = joins.into_iter().find(|join| match &join.join_operator {
        JoinOperator::AsOf { match_condition: Expr::Function(function), .. } => name_of(function) == WINDOW_JOIN,
        _ => false,
    })?;
    match &join.relation {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Some(alias.name.value.clone())
        }
        TableFactor::Table { name, .. } => name.0.last().and_then(|part| part.as_ident()).map(|name| name.value.clone()),
        _ => Some(String::new()),
    }
}

/// Finds the columns that are outside aggregates.
struct Columns<'f> {
    is_aggregate: &'f dyn Fn(&str) -> bool,
    depth: usize,
    found: BTreeSet<Vec<Ident>>,
}

impl Columns<'_> {
    fn add(&mut self, expr: &Expr) {
        // It never breaks.
        let _continued = expr.visit(self);
    }

    fn is_aggregate(&self, expr: &Expr) -> bool {
        matches!(expr, Expr::Function(function) if function.over.is_none() && (self.is_aggregate)(&name_of(function)))
    }
}

impl Visitor for Columns<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.depth += usize::from(self.is_aggregate(expr));
        if self.depth == 0 {
            match expr {
                Expr::Identifier(name) => {
                    self.found.insert(vec![name.clone()]);
                }
                Expr::CompoundIdentifier(parts) => {
                    self.found.insert(parts.clone());
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.depth -= usize::from(self.is_aggregate(expr));
        ControlFlow::Continue(())
    }
}
