//! Rows, orders, aggregates, the newest rows and samples equal a slow reference.

use std::collections::BTreeMap;

use tape_query::failure::QueryError;

use crate::world::{KEYS, Known, ask, integer, keys, number, plan, try_ask, world};

#[test]
fn conditions_leave_the_rows_that_they_leave_in_the_library() {
    let trades = &world().trades;
    let middle = trades[trades.len() / 2].time;
    // Times that rows have: a bound that is moved by one leaves another row.
    let (early, late) = (trades[trades.len() * 2 / 5].time, trades[trades.len() * 3 / 5].time);
    let time = |ns: i64| format!("to_timestamp_nanos({ns})");
    type Passes<'a> = Box<dyn Fn(&Known) -> bool + 'a>;
    let cases: Vec<(String, Passes<'_>)> = vec![
        ("true".into(), Box::new(|_| true)),
        ("symbol = 'B:ETH'".into(), Box::new(|t| t.symbol == "B:ETH")),
        ("symbol in ('A:AAPL', 'C:ONE', 'X:X')".into(), Box::new(|t| ["A:AAPL", "C:ONE"].contains(&&*t.symbol))),
        ("symbol like 'A:%'".into(), Box::new(|t| t.symbol.starts_with("A:"))),
        ("symbol not like 'A:%' and symbol <> 'B:BTC'".into(), Box::new(|t| !t.symbol.starts_with("A:") && t.symbol != "B:BTC")),
        ("symbol = 'A:NONE'".into(), Box::new(|_| false)),
        ("symbol is null".into(), Box::new(|_| false)),
        (format!("time >= {} and time < {}", time(early), time(late)), Box::new(|t| (early..late).contains(&t.time))),
        (format!("time between {} and {}", time(early), time(late)), Box::new(|t| (early..=late).contains(&t.time))),
        (format!("time = {}", time(middle)), Box::new(|t| t.time == middle)),
        (format!("time > {} and time <= {}", time(early), time(late)), Box::new(|t| t.time > early && t.time <= late)),
        (format!("symbol = 'B:BTC' and {} < time", time(late)), Box::new(|t| t.symbol == "B:BTC" && t.time > late)),
        ("time < '1980-01-01'".into(), Box::new(|_| false)),
        ("lsn > 50000 and lsn <= 60000".into(), Box::new(|t| t.lsn > 50_000 && t.lsn <= 60_000)),
        ("lsn = 77777 or symbol = 'C:ONE'".into(), Box::new(|t| t.lsn == 77_777 || t.symbol == "C:ONE")),
        ("trade_id = 4242".into(), Box::new(|t| t.id == Some(4242))),
        ("symbol = 'A:MSFT' and trade_id < 900".into(), Box::new(|t| t.symbol == "A:MSFT" && t.id.is_some_and(|id| id < 900))),
        ("trade_id is null".into(), Box::new(|t| t.id.is_none())),
        ("price is null and symbol = 'B:ETH'".into(), Box::new(|t| t.price.is_none() && t.symbol == "B:ETH")),
        ("price > 1005.5".into(), Box::new(|t| t.price.is_some_and(|price| price > 1005.5))),
        (
            format!("symbol = 'B:BTC' and lsn > 90000 and time < {}", time(late)),
            Box::new(|t| t.symbol == "B:BTC" && t.lsn > 90_000 && t.time < late),
        ),
    ];
    for (condition, passes) in cases {
        let mut expected = keys(trades.iter().filter(|trade| passes(trade)));
        let mut found = ask(&format!("select {KEYS} from trade where {condition}"));
        expected.sort();
        found.sort();
        assert!(found == expected, "{condition}: {} rows, expected {}", found.len(), expected.len());
        let count = ask(&format!("select count(*) from trade where {condition}"));
        assert_eq!(count, [[expected.len().to_string()]], "{condition}");
    }
}

#[test]
fn rows_come_in_the_order_that_is_asked_for_with_and_without_a_limit() {
    let trades = &world().trades;
    type Key = fn(&Known) -> (String, i64, i64);
    let orders: [(&str, Key); 6] = [
        ("time, lsn", |t| (String::new(), t.time, t.lsn as i64)),
        ("time desc, lsn desc", |t| (String::new(), -t.time, -(t.lsn as i64))),
        ("symbol, time, lsn", |t| (t.symbol.clone(), t.time, t.lsn as i64)),
        ("symbol, time desc, lsn desc", |t| (t.symbol.clone(), -t.time, -(t.lsn as i64))),
        ("lsn", |t| (String::new(), t.lsn as i64, 0)),
        ("lsn desc", |t| (String::new(), -(t.lsn as i64), 0)),
    ];
    for (order, key) in orders {
        let mut sorted: Vec<&Known> = trades.iter().collect();
        sorted.sort_by_key(|row| key(row));
        let expected = keys(sorted);
        assert!(ask(&format!("select {KEYS} from trade order by {order}")) == expected, "{order}");
        for limit in [1, 7, 1000, 20_000] {
            let found = ask(&format!("select {KEYS} from trade order by {order} limit {limit}"));
            assert!(found == expected[..limit.min(expected.len())], "{order} limit {limit}");
        }
        let one: Vec<_> = expected.iter().filter(|row| row[0] == "B:ETH").cloned().collect();
        let found = ask(&format!("select {KEYS} from trade where symbol = 'B:ETH' order by {order}"));
        assert!(found == one, "{order} of one symbol");
        let found = ask(&format!("select {KEYS} from trade where symbol = 'B:ETH' order by {order} limit 5 offset 3"));
        assert!(found == one[3..8], "{order} of one symbol with an offset");
    }
    assert_eq!(ask("select lsn from trade limit 5").len(), 5);
    assert_eq!(ask("select 1 from trade where symbol = 'C:ONE' limit 5").len(), 1);
}

/// The blocks that a scan of the statement reads, as its plan says.
fn blocks_read(sql: &str) -> u64 {
    let plan = plan(sql);
    plan.split("blocks=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{plan}"))
}

#[test]
fn a_number_is_looked_for_only_in_blocks_whose_bloom_filter_may_have_it() {
    let trades = world().trades.iter().filter(|trade| trade.symbol == "B:ETH" && trade.id.is_some()).step_by(400);
    let (mut own, mut other, mut asked) = (0, 0, 0);
    for id in trades.filter_map(|trade| trade.id) {
        let of = |symbol: &str| format!("select lsn from trade where symbol = '{symbol}' and trade_id = {id}");
        assert_eq!(ask(&of("B:ETH")).len(), 1, "{id}");
        assert!(ask(&of("B:BTC")).is_empty(), "{id}");
        own += blocks_read(&of("B:ETH"));
        // Trades of both lie in the same times, so the bounds of a block exclude nothing.
        other += blocks_read(&of("B:BTC"));
        asked += 1;
    }
    assert!(own > asked / 4, "{own} of {asked}: some lie in SSTables");
    assert!(other <= asked / 10, "{other} blocks for {asked} numbers that are not there");
}

#[test]
fn an_order_by_symbol_and_time_needs_no_sort_and_the_newest_rows_little_reading() {
    for sql in [
        "select symbol, time, price from trade order by symbol, time",
        "select symbol, time, lsn from trade order by symbol desc, time desc, lsn desc",
        "select time, price from trade order by time desc limit 5",
        "select time, price from trade where symbol = 'B:ETH' order by time desc limit 5",
    ] {
        let plan = plan(sql);
        assert!(!plan.contains("SortExec"), "{sql}\n{plan}");
    }
    let plan = plan("select time, price from trade where symbol = 'B:ETH' and time > now() - interval '1 hour'");
    assert!(plan.contains("symbols=1 of 6") && !plan.contains("FilterExec"), "{plan}");
    for columns in ["time, price", "cast(time as bigint), price * 2"] {
        let analyzed = ask(&format!("explain analyze select {columns} from trade order by time desc limit 5")).concat().join(" ");
        let bytes: u64 = analyzed.split("bytes_read=").nth(1).unwrap().split([',', ']']).next().unwrap().trim().parse().unwrap();
        assert!(bytes < 1_000, "{analyzed}");
    }
}

#[test]
fn sums_are_exact() {
    let trades = &world().trades;
    let mut of: BTreeMap<&str, (i128, i128, i128, u64)> = BTreeMap::new();
    for trade in trades {
        let sums = of.entry(&trade.symbol).or_default();
        sums.0 += i128::from(trade.price_raw.unwrap_or(0));
        if let (Some(price), Some(size)) = (trade.price_raw, trade.size_raw) {
            sums.1 += i128::from(price) * i128::from(size);
            sums.2 += i128::from(size);
        }
        sums.3 += trade.size_raw.unwrap_or(0);
    }
    let decimal = |units: i128, places: u32| {
        let scale = 10i128.pow(places);
        format!("{}.{:0width$}", units / scale, units % scale, width = places as usize)
    };
    let expected: Vec<Vec<String>> = of
        .iter()
        .map(|(symbol, (price, notional, size, volume))| {
            let vwap = number(Some(*notional as f64 / *size as f64 / 1e9));
            vec![(*symbol).to_owned(), decimal(*price, 9), decimal(*notional, 18), vwap, volume.to_string()]
        })
        .collect();
    let sql = "select symbol, exact_sum(price), notional(price, size), vwap(price, size), sum(size_raw) from trade";
    assert_eq!(ask(&format!("{sql} group by symbol order by symbol")), expected);
    let sql = "select symbol, sum(price), avg(price) from trade group by symbol order by symbol";
    let rounded: Vec<Vec<String>> = of
        .iter()
        .map(|(symbol, (price, ..))| {
            let count = trades.iter().filter(|t| t.symbol == **symbol && t.price.is_some()).count();
            let (sum, mean) = (*price as f64 / 1e9, *price as f64 / count as f64 / 1e9);
            vec![(*symbol).to_owned(), number(Some(sum)), number(Some(mean))]
        })
        .collect();
    assert_eq!(ask(sql), rounded, "a sum of decimals is rounded once");
    // 2^63 is passed many times over.
    let total: i128 = trades.iter().map(|t| i128::from(t.price_raw.unwrap_or(0))).sum::<i128>() * 1000;
    let sql = "select sum(price_raw) from trade, (select unnest(generate_series(1, 1000)))";
    assert_eq!(ask(sql), [[total.to_string()]]);
    assert!(try_ask("select exact_sum(lsn) from trade").unwrap_err().to_string().contains("use sum"));
}

#[test]
fn first_and_last_are_by_time_and_lsn_and_ohlc_is_made_of_them() {
    let mut of: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for trade in world().trades.iter().filter(|trade| trade.price.is_some()) {
        of.entry(&trade.symbol).or_default().push(trade);
    }
    let expected: Vec<Vec<String>> = of
        .iter()
        .map(|(symbol, rows)| {
            let price = |row: Option<&&Known>| number(row.and_then(|row| row.price));
            let prices = || rows.iter().filter_map(|row| row.price);
            let (high, low) = (prices().fold(f64::MIN, f64::max), prices().fold(f64::MAX, f64::min));
            let (high, low) = (number(Some(high)), number(Some(low)));
            vec![(*symbol).to_owned(), price(rows.first()), price(rows.last()), high, low, rows.len().to_string()]
        })
        .collect();
    let sql = "select symbol, first(price), last(price), max(price), min(price), count(price) from trade where price is not null";
    assert_eq!(ask(&format!("{sql} group by symbol order by symbol")), expected);
    let sql = "select s, o['open'], o['close'], o['high'], o['low'], o['trades'] from
        (select symbol as s, ohlc(price, size) as o from trade where price is not null group by symbol) order by s";
    assert_eq!(ask(sql), expected);
}

#[test]
fn first_and_last_take_values_of_any_type_nulls_and_a_filter() {
    let trades = &world().trades;
    let of = |keep: &dyn Fn(&Known) -> bool| trades.iter().filter(|trade| keep(trade)).collect::<Vec<_>>();
    let ends = |rows: Vec<&Known>, value: &dyn Fn(&Known) -> String| {
        let at = |row: &&&Known| (row.time, row.lsn);
        let (first, last) = (rows.iter().min_by_key(at), rows.iter().max_by_key(at));
        [first, last].map(|row| row.map_or_else(|| "null".to_owned(), |row| value(row)))
    };
    let time = |trade: &Known| trade.time.to_string();
    let id = |trade: &Known| integer(trade.id);
    let price = |trade: &Known| number(trade.price);
    let symbol = |trade: &Known| trade.symbol.clone();
    let asked = |what: &str, rest: &str| ask(&format!("select first({what}){rest}, last({what}){rest} from trade")).remove(0);
    assert_eq!(asked("cast(time as bigint)", ""), ends(of(&|_| true), &time));
    assert_eq!(asked("symbol", ""), ends(of(&|_| true), &symbol), "values of other widths");
    // Each symbol and minute, of which some begin or end with a null price and a null number.
    let mut groups: BTreeMap<(&str, i64), Vec<&Known>> = BTreeMap::new();
    for trade in trades {
        groups.entry((&trade.symbol, trade.time / 60_000_000_000)).or_default().push(trade);
    }
    let expected: Vec<Vec<String>> = groups
        .into_values()
        .map(|rows| [&price as &dyn Fn(&Known) -> String, &id, &time].map(|value| ends(rows.clone(), value)).concat())
        .collect();
    assert!(expected.iter().any(|row| row[0] == "null") && expected.iter().any(|row| row[3] == "null"));
    let columns =
        "first(price), last(price), first(trade_id), last(trade_id), cast(first(time) as bigint), cast(last(time) as bigint)";
    let sql =
        format!("select {columns} from trade group by symbol, time_bucket('1m', time) order by symbol, time_bucket('1m', time)");
    assert_eq!(ask(&sql), expected);
    let some = of(&|trade| trade.price.is_some_and(|price| price > 1009.5));
    assert_eq!(asked("price", " filter (where price > 1009.5)"), ends(some, &price));
    assert_eq!(asked("price", " filter (where price > 9999)"), ["null", "null"]);
    assert_eq!(ask("select first(price), last(trade_id) from trade where symbol = 'A:NONE'"), [["null", "null"]]);
}

#[test]
fn groups_by_symbol_are_made_in_one_phase_where_nothing_relies_on_their_distribution() {
    let columns = "time_bucket('1m', time) as t, count(*) as n, first(price) as a, last(price) as b, vwap(price, size) as v";
    for condition in ["", "where price > 1003", "where time > '2024-08-08T07:00:00' and symbol like '%:%'"] {
        let one = format!("select symbol as s, {columns} from trade {condition} group by symbol, t");
        let found = plan(&one);
        assert!(found.contains("SinglePartitioned") && !found.contains("mode=Partial"), "{found}");
        let two = format!("select concat(symbol, '') as s, {columns} from trade {condition} group by s, t");
        assert!(plan(&two).contains("mode=Partial"));
        let ordered = |sql: &str| ask(&format!("select * from ({sql}) order by s, t"));
        assert_eq!(ordered(&one), ordered(&two));
    }
    // Few rows are in one partition.
    for sql in [
        "select time, vwap(price, size) as v from trade where symbol = 'B:ETH' sample by 1m",
        "select time_bucket('1m', time) as t, count(distinct price) from trade where symbol = 'B:ETH' group by t order by t limit 7",
        "select t.time, t.price, q.bid_px from trade t asof join quote q match_condition (t.time >= q.time) on t.symbol = q.symbol
            where t.symbol = 'B:ETH'",
    ] {
        let found = plan(sql);
        assert!(!found.contains("RepartitionExec") && !found.contains("mode=Partial,"), "{found}");
    }
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for (at, rows) in [&world().trades, &world().quotes].into_iter().enumerate() {
        rows.iter().for_each(|row| counts.entry(&row.symbol).or_default()[at] += 1);
    }
    let of = |table: &str| format!("(select symbol, count(*) as n from {table} group by symbol)");
    let joined = format!("select a.symbol, a.n, b.n from {} a full join {} b on a.symbol = b.symbol", of("trade"), of("quote"));
    let number = |n: u64| if n == 0 { "null".to_owned() } else { n.to_string() };
    let expected: Vec<_> = counts.iter().map(|(symbol, [a, b])| vec![(*symbol).to_owned(), number(*a), number(*b)]).collect();
    assert_eq!(ask(&format!("{joined} order by 1")), expected);
    assert!(plan(&joined).contains("mode=FinalPartitioned"), "both sides of a join are distributed alike");
}

#[test]
fn the_newest_row_of_each_symbol_is_that_of_the_library() {
    let mut newest: BTreeMap<&str, &Known> = BTreeMap::new();
    for trade in &world().trades {
        newest.insert(&trade.symbol, trade);
    }
    let expected = keys(newest.values().copied());
    assert_eq!(ask(&format!("select {KEYS} from trade latest on time partition by symbol order by symbol")), expected);
    let plan = plan("select symbol, price from trade latest on time partition by symbol");
    assert!(plan.contains("first row of each symbol"), "{plan}");
    // With a condition that the indexes cannot answer.
    let mut newest: BTreeMap<&str, &Known> = BTreeMap::new();
    for trade in world().trades.iter().filter(|trade| trade.price.is_some_and(|price| price > 1009.0)) {
        newest.insert(&trade.symbol, trade);
    }
    let sql = format!("select {KEYS} from trade where price > 1009 latest on time partition by symbol order by symbol");
    assert_eq!(ask(&sql), keys(newest.values().copied()));
    let sql = "select symbol, depth from trade where symbol like 'A:%' latest on time partition by symbol, depth order by 1";
    assert_eq!(ask(sql).len(), 2);
}

#[test]
fn a_limit_and_an_offset_leave_those_rows_of_any_statement() {
    for sql in [
        "select symbol, time from trade latest on time partition by symbol order by symbol",
        "select symbol, time from trade latest on time partition by symbol order by symbol desc",
        "select * from (select symbol, price from trade where price > 1003 latest on time partition by symbol) order by symbol",
        "select time, lsn from trade order by time desc, lsn desc",
        "select cast(time as bigint) as t, lsn + 1 as n from trade order by time desc, lsn desc",
        "select symbol, time, price * 2 as twice from quote order by symbol, time, lsn",
        "select time, lsn from trade where symbol = 'B:ETH' and price > 1003 order by time, lsn",
        "select time, count(*), last(price) from trade where symbol = 'B:ETH' sample by 1m",
        "select symbol, count(*) from trade group by symbol order by symbol",
        "select t.time, t.lsn, q.bid_px from trade t asof join quote q match_condition (t.time >= q.time) on t.symbol = q.symbol
            where t.symbol = 'B:ETH' order by t.time, t.lsn",
        "select lsn from (select lsn from trade union all select lsn from quote) order by lsn",
        "select lsn from trade where symbol = 'NONE' order by lsn",
    ] {
        let all = ask(sql);
        for (limit, offset) in [(0, 0), (1, 0), (3, 0), (1, 1), (2, 3), (5, 1000)] {
            let expected: Vec<_> = all.iter().skip(offset).take(limit).cloned().collect();
            let limited = format!("{sql} limit {limit} offset {offset}");
            assert_eq!(ask(&limited), expected, "{limited}");
            assert_eq!(ask(&format!("select * from ({limited})")), expected, "{limited}");
            let fewer: Vec<_> = expected.iter().skip(1).take(2).cloned().collect();
            assert_eq!(ask(&format!("select * from ({limited}) limit 2 offset 1")), fewer, "{limited}");
            if offset == 0 {
                assert_eq!(ask(&format!("{sql} limit {limit}")), expected, "{sql} limit {limit}");
            }
        }
    }
}

#[test]
fn groups_of_limited_rows_have_as_many_rows_as_the_limit() {
    for limit in [5, 110_000, 130_000] {
        for inner in ["select symbol, price from trade", "select symbol, price from trade order by symbol, time"] {
            let sql = format!("select sum(n) from (select symbol, count(*) as n from ({inner} limit {limit}) group by symbol)");
            assert_eq!(ask(&sql), [[limit.to_string()]], "{sql}");
        }
    }
}

#[test]
fn sampled_rows_are_those_of_their_buckets_and_gaps_are_filled() {
    let trades: Vec<&Known> = world().trades.iter().filter(|t| t.symbol == "B:ETH" || t.symbol == "C:ONE").collect();
    let bucket = |time: i64, len: i64| time.div_euclid(len) * len;
    for (text, len) in [("7s", 7_000_000_000), ("1m", 60_000_000_000), ("250ms", 250_000_000)] {
        let mut of: BTreeMap<(&str, i64), (u64, Option<f64>)> = BTreeMap::new();
        for trade in &trades {
            let sums = of.entry((&trade.symbol, bucket(trade.time, len))).or_insert((0, None));
            sums.0 += 1;
            sums.1 = trade.price;
        }
        let row = |symbol: &str, time: i64, count: u64, last: String| {
            vec![symbol.to_owned(), time.to_string(), count.to_string(), last]
        };
        let expected: Vec<_> = of.iter().map(|((symbol, time), (n, last))| row(symbol, *time, *n, number(*last))).collect();
        let sql = format!(
            "select symbol, time, count(*) as n, last(price) as p from trade where symbol in ('B:ETH', 'C:ONE') sample by {text}"
        );
        let found = ask(&format!("select symbol, cast(time as bigint), n, p from ({sql}) order by 1, 2"));
        assert!(found == expected, "{text}: {} and {} rows", found.len(), expected.len());
        let first = of.keys().map(|(_, time)| *time).min().unwrap();
        let last = of.keys().map(|(_, time)| *time).max().unwrap();
        let mut filled = Vec::new();
        for symbol in ["B:ETH", "C:ONE"] {
            let mut before = None;
            for time in (first..=last).step_by(len as usize) {
                let there = of.get(&(symbol, time));
                before = there.map_or(before, |(_, price)| *price);
                filled.push(row(symbol, time, there.map_or(0, |(n, _)| *n), number(before)));
            }
        }
        let found = ask(&format!("select symbol, cast(time as bigint), n, p from ({sql} fill (0, prev)) order by 1, 2"));
        let wrong = found.iter().zip(&filled).find(|(a, b)| a != b);
        assert!(found == filled, "{text}: {} and {} rows, {wrong:?}", found.len(), filled.len());
    }
    let times: Vec<String> = ask("select time, count(*) from trade sample by 1s").into_iter().map(|row| row[0].clone()).collect();
    assert!(times.is_sorted() && times.len() > 100, "sampled rows come by time");
    assert!(ask("select time, last(price) from trade where symbol = 'A:NONE' sample by 1m fill (null)").is_empty());
    let error = try_ask("select time, last(price) from trade sample by 1m fill (null, prev)").unwrap_err().to_string();
    assert!(error.contains("2 values for 1 aggregates"), "{error}");
}

#[test]
fn a_statement_only_reads() {
    for sql in [
        "drop table trade",
        "create table x as select 1",
        "insert into trade select * from trade",
        "delete from trade",
        "copy (select 1) to '/tmp/x.csv'",
        "create external table x stored as csv location '/etc/passwd'",
        "set datafusion.execution.batch_size = 1",
    ] {
        let refused = try_ask(sql);
        assert!(matches!(refused, Err(QueryError::Statement { .. })), "{sql}: {refused:?}");
    }
}

#[test]
fn system_tables_have_what_the_store_has() {
    assert_eq!(ask("select symbol from instruments order by number limit 2"), [["B:BTC"], ["B:ETH"]]);
    let files = ask("select sum(rows) from files where kind = 'trade'");
    let blocks = ask("select sum(rows) from blocks where kind = 'trade'");
    assert_eq!(files, blocks);
    let committed: u64 = ask("select lsn from watermarks where name = 'committed'")[0][0].parse().unwrap();
    assert_eq!(committed, 400_001);
    assert!(ask("select table_name from information_schema.tables").contains(&vec!["trade".to_owned()]));
    assert!(try_ask("select * from trades").unwrap_err().to_string().contains("trades"));
}
