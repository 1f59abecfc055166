//! Statements that a seeded generator makes, right ones and broken ones: each has an answer or a typed error, within its limits.

use std::time::Duration;

use futures::StreamExt;
use tape_query::engine::{Engine, Options, Settings};
use tape_query::failure::QueryError;

use crate::world::{next, world};

/// The statements of the test; `TAPESTORE_FUZZ_SEED` and `TAPESTORE_FUZZ_COUNT` choose others.
const COUNT: u64 = 500;

struct Maker(u64);

impl Maker {
    fn below(&mut self, count: u64) -> u64 {
        next(&mut self.0) % count
    }

    fn pick(&mut self, from: &[&str]) -> String {
        from[self.below(from.len() as u64) as usize].to_owned()
    }

    /// Anything.
    fn value(&mut self, depth: u64) -> String {
        match self.below(8) {
            0 => self.pick(&[
                "x",
                "q.bid_px",
                "t.*",
                "null",
                "'''; --'",
                "interval '1 day'",
                "timestamp '2262-04-11'",
                "date '0001-01-01'",
            ]),
            1 => self.pick(&["t.symbol", "t.side", "t.time", "'B:BTC'", "'2024-08-08'", "now()", "true"]),
            2 if depth > 0 => format!("({})", self.statement(depth - 1)),
            _ => self.number(depth),
        }
    }

    /// A number, mostly.
    fn number(&mut self, depth: u64) -> String {
        if depth == 0 {
            return self.pick(&[
                "t.lsn",
                "t.price",
                "t.size",
                "t.price_raw",
                "t.trade_id",
                "0",
                "1",
                "-1",
                "1e308",
                "9223372036854775807",
                "1.5",
            ]);
        }
        match self.below(7) {
            0 => {
                let (a, b) = (self.number(depth - 1), self.number(depth - 1));
                format!("({a} {} {b})", self.pick(&["+", "-", "*", "/", "%"]))
            }
            1 => format!("{}({})", self.pick(&["abs", "ln", "sqrt", "ceil", "exp"]), self.number(depth - 1)),
            2 => format!(
                "{}({}, {})",
                self.pick(&["nullif", "power", "mid", "spread", "imbalance"]),
                self.number(depth - 1),
                self.number(depth - 1)
            ),
            3 => format!("case when {} then {} end", self.condition(depth - 1), self.number(depth - 1)),
            4 => {
                let order = self.pick(&["t.time", "t.time, t.lsn", "t.price"]);
                let name = self.pick(&["sum", "lag", "returns", "avg", "last_value", "max"]);
                format!("{name}({}) over (partition by t.symbol order by {order})", self.number(depth - 1))
            }
            _ => self.number(0),
        }
    }

    fn aggregate(&mut self, depth: u64) -> String {
        match self.below(4) {
            0 => format!("{}(t.price, t.size)", self.pick(&["vwap", "notional", "ohlc", "corr"])),
            1 => "count(*)".to_owned(),
            _ => {
                let name = self.pick(&[
                    "first",
                    "last",
                    "sum",
                    "avg",
                    "min",
                    "max",
                    "count",
                    "twap",
                    "median",
                    "stddev",
                    "array_agg",
                    "exact_sum",
                ]);
                format!("{name}({})", self.number(depth / 2))
            }
        }
    }

    fn condition(&mut self, depth: u64) -> String {
        match self.below(6) {
            0 => self.pick(&[
                "t.symbol = 'B:BTC'",
                "t.symbol like 'A:%'",
                "t.symbol in ('C:ONE', 'no')",
                "t.symbol is null",
                "t.symbol > 'A'",
            ]),
            1 => self.pick(&[
                "t.time < '2024-08-08T12:00:00'",
                "t.time = '1970-01-01'",
                "t.time between '2024-08-08' and now()",
                "t.time > 'never'",
            ]),
            2 if depth > 0 => {
                let (a, b) = (self.condition(depth - 1), self.condition(depth - 1));
                format!("({a} {} {b})", self.pick(&["and", "or", "is distinct from"]))
            }
            3 => format!("not {}", self.pick(&["t.price is null", "t.lsn > 5", "t.side = 'B'"])),
            4 => self.value(depth),
            _ => format!("{} {} {}", self.number(depth), self.pick(&["=", "<", ">=", "<>"]), self.number(0)),
        }
    }

    fn table(&mut self, depth: u64) -> String {
        match self.below(9) {
            0 => {
                let operator = self.pick(&[">=", ">", "<=", "<", "="]);
                let tolerance = self.pick(&["", "tolerance 5s", "tolerance '1y'"]);
                format!("trade t asof join quote q match_condition (t.time {operator} q.time) on t.symbol = q.symbol {tolerance}")
            }
            1 => {
                let (a, b) = (self.below(3), self.below(3));
                format!("trade t window join quote q on t.symbol = q.symbol range between {a}ms preceding and {b}ms following")
            }
            2 => "trade t horizon join quote q using (symbol) list (0, 1s) as h".to_owned(),
            3 if depth > 0 => format!("({}) t", self.statement(depth - 1)),
            4 => self.pick(&["instruments t", "files t", "blocks t", "watermarks t", "bar_1m t", "no_such_table t", "quote t"]),
            5 => "trade t join instruments i on t.symbol = i.symbol".to_owned(),
            _ => "trade t".to_owned(),
        }
    }

    fn statement(&mut self, depth: u64) -> String {
        let table = self.table(depth);
        let condition = if self.below(2) == 0 { format!(" where {}", self.condition(depth)) } else { String::new() };
        let limit = if self.below(2) == 0 { format!(" limit {}", self.below(100)) } else { String::new() };
        let which = self.below(6);
        let (a, b) = (self.aggregate(depth), self.aggregate(depth));
        let (number, value) = (self.number(depth), self.value(depth.saturating_sub(1)));
        match which {
            0 => format!("select t.symbol, {a} as a from {table}{condition} group by t.symbol{limit}"),
            1 => {
                let every = self.pick(&[
                    "1s",
                    "1d fill (prev)",
                    "7m align to calendar time zone 'Europe/Paris'",
                    "1M fill (linear)",
                    "0s",
                    "250ms",
                ]);
                format!("select t.time, {a} as a from {table}{condition} sample by {every}{limit}")
            }
            2 => format!("select t.symbol, {number} as a from {table}{condition} latest on time partition by symbol{limit}"),
            3 => format!("select {a} as a, {b} as b from {table}{condition}{limit}"),
            4 => format!("select {number} as a, {value} as b from {table}{condition} order by a desc{limit}"),
            _ => format!("select t.symbol, t.time, {number} as a from {table}{condition}{limit}"),
        }
    }

    /// A statement, of which now and then a part is gone, twice there, or in another place.
    fn next(&mut self) -> String {
        let sql = self.statement(2);
        if self.below(4) > 0 {
            return sql;
        }
        let mut words: Vec<&str> = sql.split(' ').collect();
        let (a, b) = (self.below(words.len() as u64) as usize, self.below(words.len() as u64) as usize);
        match self.below(3) {
            0 => {
                words.remove(a);
            }
            1 => words.insert(a, words[b]),
            _ => words.swap(a, b),
        }
        words.join(" ")
    }
}

fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn five_hundred_statements_of_a_generator_have_an_answer_or_a_typed_error() {
    let world = world();
    let limits = Options { memory: 64 << 20, time: Duration::from_secs(2), threads: 2, ..Options::default() };
    let engine = Engine::open(world.engine.store(), limits).unwrap();
    let (seed, count) = (variable("TAPESTORE_FUZZ_SEED", 19), variable("TAPESTORE_FUZZ_COUNT", COUNT));
    let (mut answered, mut refused) = (0, 0);
    for number in 0..count {
        let sql = Maker(seed.wrapping_mul(1_000_003) + number).next();
        if variable("TAPESTORE_FUZZ_SHOW", 0) > 0 {
            println!("{number}: {sql}");
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.runtime.block_on(async {
                let mut answer = engine.query(&sql, &Settings::default()).await?;
                while let Some(batch) = answer.rows.next().await {
                    batch?;
                }
                Ok::<(), QueryError>(())
            })
        }));
        match outcome {
            Ok(Ok(())) => answered += 1,
            Ok(Err(error)) => {
                let text = error.to_string();
                assert!(!text.contains("panicked") && !text.is_empty(), "seed {seed}, statement {number}: {sql}\n{text}");
                refused += 1;
            }
            Err(_) => panic!("seed {seed}, statement {number} panicked: {sql}"),
        }
    }
    println!("{answered} answered, {refused} refused");
    assert!(answered > count / 20 && refused > count / 20, "{answered} answered, {refused} refused: the generator tries both");
}

#[test]
fn a_statement_of_a_million_million_rows_ends_at_its_limit_and_the_next_one_is_answered() {
    let world = world();
    let limits = Options { memory: 64 << 20, time: Duration::from_secs(1), threads: 2, ..Options::default() };
    let engine = Engine::open(world.engine.store(), limits).unwrap();
    let ask = |sql: &'static str| {
        world.runtime.block_on(async {
            let mut answer = engine.query(sql, &Settings::default()).await?;
            while let Some(batch) = answer.rows.next().await {
                batch?;
            }
            Ok::<(), QueryError>(())
        })
    };
    let error = ask("select count(a.price * b.price * c.bid_px) from trade a cross join trade b cross join quote c").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("its limit") || text.contains("memory"), "{text}");
    ask("select count(*) from trade").unwrap();
}
