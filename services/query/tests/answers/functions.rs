//! Functions over time equal a loop over the rows: averages weighted by time, exponential and moving averages, returns, percentiles.

use std::collections::BTreeMap;

use crate::world::{Known, ask, plan, try_ask, world};

/// The trades of each symbol, by time and LSN.
fn series() -> BTreeMap<&'static str, Vec<&'static Known>> {
    let mut of: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for trade in &world().trades {
        of.entry(&trade.symbol).or_default().push(trade);
    }
    of.values_mut().for_each(|rows| rows.sort_by_key(|row| (row.time, row.lsn)));
    of
}

fn value(text: &str) -> Option<f64> {
    (text != "null").then(|| text.parse().unwrap())
}

fn assert_close(found: &str, expected: Option<f64>, of: &str) {
    match (value(found), expected) {
        (Some(found), Some(expected)) => {
            assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{of}: {found} and {expected}");
        }
        (found, expected) => assert_eq!(found, expected, "{of}"),
    }
}

#[test]
fn twap_weights_each_value_with_the_time_until_the_next_one() {
    let weighted = |rows: &[&Known]| {
        let rows: Vec<(i64, f64)> = rows.iter().filter_map(|row| Some((row.time, row.price?))).collect();
        let span = rows.last()?.0 - rows.first()?.0;
        let sum: f64 = rows.windows(2).map(|pair| pair[0].1 * (pair[1].0 - pair[0].0) as f64).sum();
        Some(if span == 0 { rows.last()?.1 } else { sum / span as f64 })
    };
    for row in ask("select symbol, twap(price) from trade group by symbol") {
        assert_close(&row[1], series().get(row[0].as_str()).and_then(|rows| weighted(rows)), &row[0]);
    }
    let buckets = ask("select cast(time as bigint), twap(price) from trade where symbol = 'B:ETH' sample by 7s");
    assert!(buckets.len() > 20);
    for row in buckets {
        let start: i64 = row[0].parse().unwrap();
        let rows: Vec<&Known> =
            series()["B:ETH"].iter().copied().filter(|t| (start..start + 7_000_000_000).contains(&t.time)).collect();
        assert_close(&row[1], weighted(&rows), &row[0]);
    }
    assert_eq!(ask("select twap(price) from trade where symbol = 'no'"), [["null"]]);
    assert_eq!(ask("select twap(price) from trade where symbol = 'C:ONE'"), [["5.0"]], "one row stands for itself");
    let error = try_ask("select twap(x) from (select price as x from trade)").unwrap_err().to_string();
    assert!(error.contains("needs the column time"), "{error}");
}

#[test]
fn returns_and_exponential_averages_are_those_of_a_loop() {
    let sql = "select symbol, lsn, returns(price) over w, ema(price, 20) over w, ema(price, 0.1) over w from trade \
         where symbol in ('A:AAPL', 'C:ONE') window w as (partition by symbol order by time, lsn) order by symbol, time, lsn";
    let found = ask(sql);
    let mut at = 0;
    for symbol in ["A:AAPL", "C:ONE"] {
        let (mut before, mut averages): (Option<f64>, [Option<f64>; 2]) = (None, [None; 2]);
        for trade in &series()[symbol] {
            let row = &found[at];
            assert_eq!((row[0].as_str(), row[1].as_str()), (symbol, trade.lsn.to_string().as_str()));
            let change = trade.price.zip(before).map(|(now, before)| now / before - 1.0);
            assert_close(&row[2], change, "returns");
            before = trade.price.or(before);
            for (average, weight) in averages.iter_mut().zip([2.0 / 21.0, 0.1]) {
                *average = match (trade.price, *average) {
                    (Some(now), Some(then)) => Some(then + weight * (now - then)),
                    (now, then) => now.or(then),
                };
            }
            assert_close(&row[3], averages[0], "ema of 20 rows");
            assert_close(&row[4], averages[1], "ema with the weight 0.1");
            at += 1;
        }
    }
    assert_eq!(at, found.len());
    let error = try_ask("select ema(price, 0) over (order by time) from trade").unwrap_err().to_string();
    assert!(error.contains("a weight between 0 and 1"), "{error}");
}

#[test]
fn moving_and_running_windows_and_percentiles_are_those_of_a_loop() {
    let trades = &series()["B:BTC"];
    let sql = "select lsn, avg(price_raw) over (order by time, lsn rows 19 preceding), \
         count(*) over (order by time range interval '1 second' preceding), sum(size_raw) over (order by time, lsn) \
         from trade where symbol = 'B:BTC' order by time, lsn";
    let found = ask(sql);
    assert_eq!(found.len(), trades.len());
    let mut sum = 0u64;
    for (at, row) in found.iter().enumerate() {
        assert_eq!(row[0], trades[at].lsn.to_string());
        let last: Vec<f64> = trades[at.saturating_sub(19)..=at].iter().filter_map(|t| t.price_raw).map(|p| p as f64).collect();
        assert_close(&row[1], Some(last.iter().sum::<f64>() / last.len() as f64).filter(|_| !last.is_empty()), "moving average");
        let time = trades[at].time;
        let first = trades.partition_point(|t| t.time < time - 1_000_000_000);
        let end = trades.partition_point(|t| t.time <= time);
        assert_eq!(row[2], (end - first).to_string(), "rows of the last second");
        sum += trades[at].size_raw.unwrap_or(0);
        assert_eq!(row[3], sum.to_string(), "running sum");
    }
    let mut sizes: Vec<f64> = trades.iter().filter_map(|t| t.size_raw).map(|size| size as f64 / 1e9).collect();
    sizes.sort_by(f64::total_cmp);
    let at = |p: f64| {
        let place = p * (sizes.len() - 1) as f64;
        let (low, high) = (sizes[place.floor() as usize], sizes[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    let found = ask("select median(size), percentile_cont(0.95) within group (order by size) from trade where symbol = 'B:BTC'");
    assert_close(&found[0][0], Some(at(0.5)), "median");
    assert_close(&found[0][1], Some(at(0.95)), "95th percentile");
}

#[test]
fn windows_of_the_last_rows_equal_a_loop_over_the_rows_of_each_symbol() {
    for rows in [1, 2, 20, 33, 500, 9_000] {
        let over = format!("over (partition by symbol order by time, lsn rows {} preceding)", rows - 1);
        let sql =
            format!("select symbol, lsn, avg(price) {over}, sum(price) {over}, count(price) {over}, count(*) {over} from trade");
        let plan = plan(&sql);
        assert!(plan.contains("MovingExec") && !plan.contains("WindowAggExec"), "{plan}");
        let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for mut row in ask(&sql) {
            found.insert(row[1].parse().unwrap(), row.split_off(2));
        }
        assert_eq!(found.len(), world().trades.len());
        for (symbol, trades) in series() {
            // Each row of short windows; of long ones some, since the loop reads the whole window.
            for at in (0..trades.len()).step_by(1 + rows / 10) {
                let window = &trades[(at + 1).saturating_sub(rows)..=at];
                let prices: Vec<f64> = window.iter().filter_map(|trade| trade.price).collect();
                let sum = (!prices.is_empty()).then(|| prices.iter().sum::<f64>());
                let row = &found[&trades[at].lsn];
                let of = format!("{rows} rows, {symbol}, row {at}");
                assert_close(&row[0], sum.map(|sum| sum / prices.len() as f64), &of);
                assert_close(&row[1], sum, &of);
                assert_eq!(row[2..], [prices.len().to_string(), window.len().to_string()], "{of}");
            }
        }
    }
}

#[test]
fn an_infinity_leaves_a_window_with_its_row_and_a_condition_of_an_aggregate_is_kept() {
    let column = |sql: &str| ask(sql).into_iter().map(|mut row| row.swap_remove(0)).collect::<Vec<_>>();
    let values = "(values (1, 1.0), (2, 'inf'::double), (3, 3.0), (4, null), (5, '-inf'::double), (6, 'nan'::double), (7, 1e300), (8, 5.0)) as v(n, x)";
    let found = column(&format!("select sum(x) over (order by n rows 1 preceding) from {values} order by n"));
    assert_eq!(found, ["1.0", "inf", "inf", "3.0", "-inf", "NaN", "NaN", "1e300"]);
    let long = "select sum(case when value = 10 then 1e300 * 1e10 else value end) over (order by value rows 99 preceding) as x, value \
                from (select cast(value as double) as value from generate_series(1, 300))";
    let found = column(&format!("select x from ({long}) order by value"));
    assert_eq!((&*found[8], &*found[9], &*found[108], &*found[109]), ("45.0", "inf", "inf", "6050.0"));
    // What leaves a window leaves no rounding behind: 1e16 and 1 have no sum.
    let large = "select sum(case when value = 20 then 1e16 else 1 end) over (order by value rows 39 preceding) as x, value \
                 from generate_series(1, 100)";
    let found = column(&format!("select x from ({large}) order by value"));
    assert!(found[59..].iter().all(|sum| sum == "40.0"), "{found:?}");
    let filtered = "select count(*) filter (where value > 2) over (order by value rows 1 preceding) from generate_series(1, 5)";
    assert_eq!(column(filtered), ["0", "0", "1", "2", "2"]);
}
