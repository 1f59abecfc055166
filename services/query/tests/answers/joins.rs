//! Joins by time equal a search for each row.

use std::collections::BTreeMap;

use crate::world::{Known, ask, integer, number, plan, try_ask, world};

/// The place of the row of `right` that belongs to a row of time `time`.
fn matched(right: &[&Known], time: i64, operator: &str, tolerance: Option<i64>) -> Option<usize> {
    let found = match operator {
        ">=" => right.partition_point(|row| row.time <= time).checked_sub(1),
        ">" => right.partition_point(|row| row.time < time).checked_sub(1),
        "<=" => Some(right.partition_point(|row| row.time < time)),
        _ => Some(right.partition_point(|row| row.time <= time)),
    };
    found.filter(|at| right.get(*at).is_some_and(|row| tolerance.is_none_or(|t| (row.time - time).abs() <= t)))
}

#[test]
fn as_of_joins_equal_a_search_for_each_row() {
    let world = world();
    let mut of: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for quote in &world.quotes {
        of.entry(&quote.symbol).or_default().push(quote);
    }
    let all: Vec<&Known> = world.quotes.iter().collect();
    let mut trades: Vec<&Known> = world.trades.iter().collect();
    trades.sort_by(|a, b| (&a.symbol, a.time, a.lsn).cmp(&(&b.symbol, b.time, b.lsn)));
    for operator in [">=", ">", "<=", "<"] {
        for (text, tolerance) in [("", None), ("tolerance 5ms", Some(5_000_000))] {
            for keyed in [true, false] {
                let expected: Vec<Vec<String>> = trades
                    .iter()
                    .map(|trade| {
                        let right = if keyed { of.get(&*trade.symbol).map_or(&[][..], |all| all) } else { &all[..] };
                        let quote = matched(right, trade.time, operator, tolerance).map(|at| right[at]);
                        vec![trade.lsn.to_string(), integer(quote.map(|q| q.lsn)), number(quote.and_then(|q| q.price))]
                    })
                    .collect();
                let on = if keyed { "on t.symbol = q.symbol" } else { "" };
                let sql = format!(
                    "select t.lsn, q.lsn, q.bid_px from trade t asof join quote q match_condition (t.time {operator} q.time) \
                     {on} {text} order by t.symbol, t.time, t.lsn"
                );
                let found = ask(&sql);
                let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
                assert!(found == expected, "{sql}: {} and {} rows, {wrong:?}", found.len(), expected.len());
            }
        }
    }
}

#[test]
fn conditions_on_the_left_side_of_an_as_of_join_restrict_both_sides_and_change_no_row() {
    let join = "trade t asof join quote q match_condition (t.time >= q.time) on t.symbol = q.symbol";
    let middle = world().trades[world().trades.len() / 2].time;
    let sql = format!("select t.lsn, q.lsn from {join} where t.symbol = 'B:ETH' and t.time < to_timestamp_nanos({middle})");
    let mut found = ask(&sql);
    let mut all = ask(&format!(
        "select a, b from (select t.symbol s, t.time tt, t.lsn a, q.lsn b from {join} limit 10000000) \
         where s = 'B:ETH' and tt < to_timestamp_nanos({middle})"
    ));
    found.sort();
    all.sort();
    assert!(!found.is_empty() && found == all);
    let plan = plan(&sql);
    assert_eq!(plan.matches("symbols=1 of 6").count(), 2, "{plan}");
    let late = format!("select t.lsn, q.lsn from {join} where t.time >= to_timestamp_nanos({middle})");
    let mut found = ask(&late);
    let mut all = ask(&format!(
        "select a, b from (select t.time tt, t.lsn a, q.lsn b from {join} limit 10000000) where tt >= to_timestamp_nanos({middle})"
    ));
    found.sort();
    all.sort();
    assert!(!found.is_empty() && found == all);
    let plan = self::plan(&late);
    assert!(plan.contains("from the newest row before the left side"), "{plan}");
    let sql = "select t.lsn, q.lsn, q.bid_px from trade t asof join quote q match_condition (q.time <= t.time) using (symbol)
        where q.bid_px is null and t.symbol = 'A:AAPL'";
    let nulls = ask(sql);
    assert!(nulls.iter().all(|row| row[2] == "null") && !nulls.is_empty(), "a condition on the right side is applied after it");
}

/// The trades by symbol and time, and the quotes of each symbol by time.
fn sides() -> (Vec<&'static Known>, BTreeMap<&'static str, Vec<&'static Known>>) {
    let mut quotes: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for quote in &world().quotes {
        quotes.entry(&quote.symbol).or_default().push(quote);
    }
    let mut trades: Vec<&Known> = world().trades.iter().collect();
    trades.sort_by(|a, b| (&a.symbol, a.time, a.lsn).cmp(&(&b.symbol, b.time, b.lsn)));
    (trades, quotes)
}

/// Number, least and greatest LSN of the rows of `right` in the window around `time`.
fn in_window(right: &[&Known], time: i64, (start, end): (i64, i64), prevailing: bool) -> Vec<String> {
    let first = right.partition_point(|row| row.time < time + start);
    let last = right.partition_point(|row| row.time <= time + end).max(first);
    let is_at_start = right.get(first).is_some_and(|row| row.time == time + start);
    let first = if prevailing && !is_at_start { first.saturating_sub(1) } else { first };
    let lsns = right[first..last].iter().map(|row| row.lsn);
    vec![(last - first).to_string(), integer(lsns.clone().min()), integer(lsns.max())]
}

#[test]
fn window_joins_equal_a_search_for_each_row() {
    let (trades, quotes) = sides();
    let windows = [
        ("5ms preceding and 5ms following", (-5_000_000, 5_000_000)),
        ("200 milliseconds preceding and current row", (-200_000_000, 0)),
        ("0 preceding and 0 following", (0, 0)),
        ("1ms following and 20ms following", (1_000_000, 20_000_000)),
        ("20ms preceding and 5ms preceding", (-20_000_000, -5_000_000)),
    ];
    for (text, window) in windows {
        for (which, prevailing) in [("", true), ("include prevailing", true), ("exclude prevailing", false)] {
            let row = |trade: &&Known| {
                let right = quotes.get(&*trade.symbol).map_or(&[][..], |all| all);
                [vec![trade.lsn.to_string()], in_window(right, trade.time, window, prevailing)].concat()
            };
            let expected: Vec<Vec<String>> = trades.iter().map(row).collect();
            let sql = format!(
                "select t.lsn, count(q.lsn), min(q.lsn), max(q.lsn) from trade t window join quote q on t.symbol = q.symbol \
                 range between {text} {which}"
            );
            let found = ask(&sql);
            let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
            assert!(found == expected, "{sql}: {} and {} rows, {wrong:?}", found.len(), expected.len());
        }
    }
}

#[test]
fn columns_of_the_left_row_of_a_window_join_are_its_own_also_where_they_are_null() {
    let (trades, quotes) = sides();
    let row = |trade: &&Known| {
        let right = quotes.get(&*trade.symbol).map_or(&[][..], |all| all);
        let counted = in_window(right, trade.time, (-5_000_000, 5_000_000), true).swap_remove(0);
        vec![integer(trade.id), number(trade.price), counted]
    };
    let expected: Vec<Vec<String>> = trades.iter().map(row).collect();
    let sql = "select t.trade_id, t.price, count(q.lsn) from trade t window join quote q on t.symbol = q.symbol \
               range between 5ms preceding and 5ms following";
    let found = ask(sql);
    let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
    assert!(found == expected, "{} and {} rows, {wrong:?}", found.len(), expected.len());
    let plan = plan(&sql.replace("count(q.lsn)", "stddev(q.lsn)"));
    assert!(plan.contains("mode=SinglePartitioned, gby=[window_row") && !plan.contains("RepartitionExec"), "{plan}");
    // A column of the right side that is a key divides the pairs of a left row.
    let quoted = format!("{sql} where t.lsn < 3000").replace("t.price,", "bid_px,");
    let pairs: u64 = ask(&quoted).iter().map(|row| row[2].parse::<u64>().unwrap()).sum();
    let whole: u64 = ask(&format!("{sql} where t.lsn < 3000")).iter().map(|row| row[2].parse::<u64>().unwrap()).sum();
    assert_eq!(pairs, whole);
    assert!(ask(&quoted).len() > ask(&format!("{sql} where t.lsn < 3000")).len());
    // Two joins number their left rows alike, also where each has one part.
    for condition in ["true", "t.symbol = 'B:ETH'"] {
        let rows = format!(
            "select window_row from trade t window join quote q on t.symbol = q.symbol \
             range between 5ms preceding and 5ms following where {condition}"
        );
        let twice = ask(&format!("select window_row, count(*) from ({rows} union all {rows}) group by 1"));
        let expected = trades.iter().filter(|trade| condition == "true" || trade.symbol == "B:ETH").count();
        assert_eq!(twice.len(), expected, "{condition}");
    }
}

#[test]
fn aggregates_of_windows_that_move_equal_those_of_the_pairs() {
    // No aggregate that moves is known for stddev: with it the join makes pairs.
    let aggregates = [
        "count(q.lsn)",
        "count(*)",
        "count(q.bid_px)",
        "count(*) filter (where q.bid_px > q.ask_px)",
        "avg(q.bid_px)",
        "sum(q.bid_sz)",
        "exact_sum(q.ask_px)",
        "notional(q.ask_px, q.ask_sz)",
        "vwap(q.bid_px, q.bid_sz)",
        "vwap(q.bid_px, q.bid_sz) filter (where q.bid_px > 100)",
        "vwap(q.bid_px * 2, q.bid_sz)",
        "min(q.bid_px)",
        "max(q.ask_px)",
        "min(q.time)",
        "max(q.bid_px_raw)",
        "max(q.lsn)",
        "first(q.bid_px)",
        "last(q.bid_px)",
        "last(q.time)",
        "first(q.lsn)",
        "round(avg(q.ask_px - q.bid_px), 6)",
        "round(sum(q.ask_px / 3), 6)",
        "count(coalesce(q.ask_px, 1.5))",
        "sum(-0.0 * q.bid_px)",
    ];
    let windows = [
        "5ms preceding and 5ms following",
        "1ms preceding and current row exclude prevailing",
        "1ms following and 20ms following",
        "20ms preceding and 5ms preceding",
        "300 milliseconds preceding and 1 second following",
    ];
    for window in windows {
        for on in ["on t.symbol = q.symbol", ""] {
            let some = if on.is_empty() { "where t.lsn % 97 = 0" } else { "where t.lsn % 5 = 0" };
            let sql = format!(
                "select t.lsn, t.price, {} from trade t window join quote q {on} range between {window} {some}",
                aggregates.join(", ")
            );
            let of_pairs = sql.replace(" from trade t", ", stddev(q.bid_px) from trade t");
            let (moving, pairs) = (plan(&sql), plan(&of_pairs));
            assert!(!moving.contains("AggregateExec") && moving.contains("aggr=[count(q.lsn)"), "{moving}");
            assert!(pairs.contains("AggregateExec"), "{pairs}");
            let mut expected = ask(&of_pairs);
            expected.iter_mut().for_each(|row| row.truncate(row.len() - 1));
            let found = ask(&sql);
            let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
            assert!(!found.is_empty() && found == expected, "{sql}: {} and {} rows, {wrong:?}", found.len(), expected.len());
        }
    }
}

#[test]
fn an_aggregate_that_may_fail_beyond_the_window_or_is_of_both_sides_is_made_of_pairs() {
    let of = |aggregate: &str| {
        plan(&format!(
            "select t.lsn, {aggregate} from trade t window join quote q on t.symbol = q.symbol range between 5ms preceding and current row"
        ))
    };
    assert!(!of("avg(q.bid_px)").contains("AggregateExec"));
    for aggregate in [
        "max(q.bid_px_raw / (q.bid_px_raw - 5))",
        "avg(q.bid_px - t.price)",
        "count(distinct q.bid_px)",
        "avg(q.bid_px + random())",
        "max(cast(cast(q.symbol as varchar) as double))",
    ] {
        assert!(of(aggregate).contains("AggregateExec"), "{aggregate}");
    }
    // Rows of two tables can have one time and LSN: which of them is the last does not depend on their order.
    let twice = "(select symbol, time, lsn, bid_px px from quote union all select symbol, time, lsn, ask_px from quote)";
    let sql = format!(
        "select t.lsn, last(q.px), first(q.px) from trade t window join {twice} q on t.symbol = q.symbol \
         range between 5ms preceding and current row where t.lsn % 50 = 0"
    );
    assert!(plan(&sql).contains("AggregateExec"));
}

#[test]
fn a_nan_is_the_greatest_value_of_each_window_that_it_is_in() {
    // Both sizes are zero: 0 / 0.
    let sql = |rows: &str| {
        format!(
            "select t.lsn, max(imbalance(q.bid_sz, q.ask_sz)), min(imbalance(q.bid_sz, q.ask_sz)), \
             count(*) filter (where isnan(imbalance(q.bid_sz, q.ask_sz))), count(imbalance(q.bid_sz, q.ask_sz)) \
             from trade t window join quote q on t.symbol = q.symbol range between 30ms preceding and current row where {rows}"
        )
    };
    let of_some = ask(&sql("t.lsn % 20 = 0"));
    let mut kinds = [0; 3];
    for row in &of_some {
        let (nan, all): (u64, u64) = (row[3].parse().unwrap(), row[4].parse().unwrap());
        kinds[if nan == 0 { 0 } else { 1 + usize::from(nan == all) }] += 1;
        assert_eq!(row[1] == "NaN", nan > 0, "{row:?}");
        assert_eq!(row[2] == "NaN", nan == all && all > 0, "{row:?}");
    }
    assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
    // A window's values are its own, whatever windows are before it.
    let of_fewer = ask(&sql("t.lsn % 60 = 0"));
    assert!(!of_fewer.is_empty() && of_fewer.iter().all(|row| of_some.contains(row)));
}

#[test]
fn a_window_without_ends_has_all_rows_for_each_left_row() {
    let sql = |last: u64| {
        format!(
            "select t.lsn, vwap(q.bid_px, q.bid_sz) from (select * from trade order by time limit {last}) t \
             window join quote q range between unbounded preceding and unbounded following"
        )
    };
    let whole = ask("select vwap(bid_px, bid_sz) from quote");
    let each = ask(&sql(3));
    assert_eq!(each.len(), 3);
    assert!(each.iter().all(|row| row[1] == whole[0][0]), "{each:?} {whole:?}");
}

#[test]
fn an_as_of_join_with_the_newest_rows_joins_no_other_ones() {
    let start = world().trades.iter().map(|trade| trade.time).nth(1_000).unwrap();
    for operator in [">=", "<="] {
        let sql = format!(
            "select count(*), count(distinct q.lsn) from trade t asof join (select * from quote latest on time partition by symbol) q \
             match_condition (t.time {operator} q.time) on t.symbol = q.symbol where t.time >= to_timestamp_nanos({start})"
        );
        let found = ask(&sql);
        let distinct: u64 = found[0][1].parse().unwrap();
        assert!(distinct <= 6, "{operator}: {found:?}");
    }
}

#[test]
fn a_window_without_keys_has_rows_of_all_symbols_and_a_long_one_all_rows() {
    let all: Vec<&Known> = world().quotes.iter().collect();
    let (trades, _) = sides();
    let some: Vec<&&Known> = trades.iter().filter(|trade| trade.symbol == "A:AAPL").step_by(9_000).collect();
    let lsns = some.iter().map(|trade| trade.lsn.to_string()).collect::<Vec<_>>().join(", ");
    let windows = [
        ("10ms preceding and 10ms following", (-10_000_000, 10_000_000)),
        ("unbounded preceding and 1s following", (-i64::MAX / 2, 1_000_000_000)),
    ];
    for (text, window) in windows {
        let row = |trade: &&&Known| [vec![trade.lsn.to_string()], in_window(&all, trade.time, window, true)].concat();
        let expected: Vec<Vec<String>> = some.iter().map(row).collect();
        let sql = format!(
            "select t.lsn, count(q.lsn), min(q.lsn), max(q.lsn) from trade t window join quote q range between {text} \
             where t.symbol = 'A:AAPL' and t.lsn in ({lsns})"
        );
        assert_eq!(ask(&sql), expected, "{sql}");
    }
}

#[test]
fn a_window_join_has_one_row_for_each_left_row_and_takes_expressions_conditions_and_orders() {
    let (trades, quotes) = sides();
    let middle = trades[trades.len() / 2].time;
    let join =
        "trade t window join quote q on t.symbol = q.symbol range between 50ms preceding and 50ms following exclude prevailing";
    let sql = format!(
        "select t.lsn, t.price - max(q.bid_px) as above, count(q.lsn) n from {join} \
         where t.symbol in ('B:ETH', 'C:ONE') and t.time >= to_timestamp_nanos({middle}) having count(q.lsn) > 2 order by t.time desc, t.lsn desc limit 50"
    );
    let mut expected = Vec::new();
    for trade in trades.iter().filter(|t| (t.symbol == "B:ETH" || t.symbol == "C:ONE") && t.time >= middle) {
        let of = |quote: &&&Known| (quote.time - trade.time).abs() <= 50_000_000;
        let within: Vec<&&Known> = quotes.get(&*trade.symbol).into_iter().flatten().filter(of).collect();
        let most = within.iter().filter_map(|quote| quote.price).max_by(f64::total_cmp);
        if within.len() > 2 {
            let above = trade.price.zip(most).map(|(price, most)| price - most);
            expected.push((trade.time, trade.lsn, vec![trade.lsn.to_string(), number(above), within.len().to_string()]));
        }
    }
    expected.sort_by_key(|(time, lsn, _)| std::cmp::Reverse((*time, *lsn)));
    let expected: Vec<Vec<String>> = expected.into_iter().map(|(.., row)| row).take(50).collect();
    assert_eq!(ask(&sql), expected);
    let plan = plan(&sql);
    assert_eq!(plan.matches("symbols=2 of 6").count(), 2, "{plan}");
    assert!(plan.contains("from the newest row before the left side"), "{plan}");
    let until = format!("select t.lsn, count(q.lsn) from {join} where t.time < to_timestamp_nanos({middle})");
    let row = |trade: &&Known| {
        let count =
            quotes.get(&*trade.symbol).into_iter().flatten().filter(|q| (q.time - trade.time).abs() <= 50_000_000).count();
        vec![trade.lsn.to_string(), count.to_string()]
    };
    let expected: Vec<Vec<String>> =
        trades.iter().filter(|t| t.time < middle && t.time > middle - 20_000_000_000).map(row).collect();
    assert_eq!(ask(&format!("{until} and t.time > to_timestamp_nanos({})", middle - 20_000_000_000)), expected);
    let error = |sql: &str| try_ask(sql).unwrap_err().to_string();
    assert!(error(&format!("select * from {join}")).contains("not *"));
    assert!(error(&format!("select t.lsn, q.lsn from {join}")).contains("needs an aggregate"));
    assert!(error("select 1 from trade t window join quote q on t.symbol = q.symbol").contains("needs its window"));
    assert!(
        error("select 1 from trade t window join quote q range between 1s following and 1s preceding").contains("ends before")
    );
}

#[test]
fn horizon_joins_equal_an_as_of_search_at_each_offset() {
    let (trades, quotes) = sides();
    for (text, offsets) in [
        ("range from -20ms to 20ms step 10ms", vec![-20_000_000, -10_000_000, 0, 10_000_000, 20_000_000]),
        ("list (0, 3ms, 5s)", vec![0, 3_000_000, 5_000_000_000]),
    ] {
        let mut expected = Vec::new();
        for trade in &trades {
            for offset in &offsets {
                let right = quotes.get(&*trade.symbol).map_or(&[][..], |all| all);
                let quote = matched(right, trade.time + offset, ">=", None).map(|at| right[at]);
                expected.push(vec![
                    trade.lsn.to_string(),
                    offset.to_string(),
                    (trade.time + offset).to_string(),
                    integer(quote.map(|q| q.lsn)),
                ]);
            }
        }
        let sql = format!(
            "select t.lsn, h.offset, cast(h.time as bigint), q.lsn from trade t horizon join quote q on t.symbol = q.symbol {text} as h \
             order by t.symbol, t.time, t.lsn, h.offset"
        );
        let found = ask(&sql);
        let wrong = found.iter().zip(&expected).find(|(a, b)| a != b);
        assert!(found == expected, "{sql}: {} and {} rows, {wrong:?}", found.len(), expected.len());
    }
    let outs =
        ask("select h.offset / 1000000 as ms, count(*), avg(q.bid_px - t.price) as out from trade t horizon join quote q \
         on t.symbol = q.symbol list (-1s, 0, 1s) as h where t.symbol = 'B:BTC' group by h.offset order by 1");
    assert_eq!(outs.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["-1000", "0", "1000"]);
    let sql = "select h.offset, avg(q.bid_px - t.price) from trade t horizon join quote q on t.symbol = q.symbol list (0, 1s) as h \
         where t.symbol = 'B:BTC' and t.time >= '2024-08-08T06:54:00' group by h.offset";
    let plan = plan(sql);
    assert_eq!(plan.matches("symbols=1 of 6").count(), 4, "both sides of both joins: {plan}");
    let error = |sql: &str| try_ask(sql).unwrap_err().to_string();
    assert!(error("select 1 from trade t horizon join quote q on t.symbol = q.symbol").contains("needs its offsets"));
    assert!(error("select 1 from trade t horizon join quote q range from 0 to 1h step 1ms as h").contains("1 to 256 offsets"));
}
