"""Thirty-two questions of market data, modelled on public descriptions of STAC-M3 and on the manuals of QuestDB and kdb+, in the
SQL of tapestore, in that of DuckDB and in Polars. `compare.py` asks all three and compares answers and times.

Each is (name, tapestore, DuckDB, Polars). `{s}` is a symbol, `{d}` and `{e}` the start and the end of a day. Polars gets the lazy
frames `t` (trades) and `q` (quotes) and the module.
"""

import os
from datetime import datetime, timedelta

import polars as pl

# The data that `data.py` makes, or with QUESTIONS=capture the two captures of a market that the tests use: a symbol, a day, an hour,
# a time, patterns of some symbols, and a session of New York with its bounds in UTC.
if os.environ.get("QUESTIONS") == "capture":
    S, DAY, HOUR, AT = "BINANCE-USDM:BTCUSDT", datetime(2024, 8, 8), datetime(2024, 8, 8, 23), datetime(2024, 8, 8, 23, 57)
    SOME = ["BINANCE-USDM:BTC", "BINANCE-USDM:", "BINANCE"]
    SESSION, SESSION_TIMES = "19:55-19:58", (datetime(2024, 8, 8, 23, 55), datetime(2024, 8, 8, 23, 58))
else:
    S, DAY, HOUR, AT = "SIM:00042", datetime(2024, 8, 13), datetime(2024, 8, 13, 15), datetime(2024, 8, 13, 16)
    SOME = ["SIM:0000", "SIM:0001", "SIM:001"]
    SESSION, SESSION_TIMES = "09:30-10:00", (datetime(2024, 8, 13, 13, 30), datetime(2024, 8, 13, 14))
END = DAY + timedelta(days=1)

_day = f"time >= '{DAY:%Y-%m-%d}' and time < '{END:%Y-%m-%d}'"
_tday = f"t.time >= '{DAY:%Y-%m-%d}' and t.time < '{END:%Y-%m-%d}'"
_hour = f"time >= '{HOUR.isoformat()}' and time < '{(HOUR + timedelta(hours=1)).isoformat()}'"
_s = f"symbol = '{S}'"


def day(frame):
    return frame.filter((pl.col("time") >= DAY) & (pl.col("time") < END))


def hour(frame):
    return frame.filter((pl.col("time") >= HOUR) & (pl.col("time") < HOUR + timedelta(hours=1)))


def one(frame):
    return frame.filter(pl.col("symbol") == S)


def vwap():
    return (pl.col("price") * pl.col("size")).sum() / pl.col("size").sum()


def bars(frame, every):
    return (
        frame.sort("time")
        .group_by("symbol", pl.col("time").dt.truncate(every).alias("t"))
        .agg(
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("price").last().alias("close"),
            pl.col("size").sum().alias("volume"),
        )
    )


_bars = "first(price) as open, max(price) as high, min(price) as low, last(price) as close, sum(size) as volume"
_duck_bars = (
    "first(price order by time, lsn) as open, max(price) as high, min(price) as low, last(price order by time, lsn) as close, "
    "sum(size) as volume"
)


def bucket(every):
    return f"time_bucket(interval '{every}', time::timestamp)::timestamp_ns"


def asof(t, q):
    return t.sort("time").join_asof(q.sort("time"), on="time", by="symbol", strategy="backward")


def markout(t, q):
    parts = []
    for seconds in (0, 1, 5, 30):
        left = day(one(t)).with_columns((pl.col("time") + pl.duration(seconds=seconds, time_unit="ns")).alias("at")).sort("at")
        right = one(q).select("symbol", "bid_px", "ask_px", pl.col("time").alias("qt")).sort("qt")
        joined = left.join_asof(right, left_on="at", right_on="qt", by="symbol")
        out = ((pl.col("bid_px") + pl.col("ask_px")) / 2 - pl.col("price")).mean().alias("out")
        parts.append(joined.select(pl.lit(seconds * 10**9, dtype=pl.Int64).alias("offset"), out).unique())
    return pl.concat(parts)


def window(t, q):
    left = day(one(t)).select("trade_id", "time")
    right = day(one(q)).select(pl.col("time").alias("qt"), "bid_px")
    second = pl.lit(10**9).cast(pl.Duration("ns"))
    joined = left.join_where(
        right, pl.col("qt") >= pl.col("time") - second, pl.col("qt") <= pl.col("time") + second
    )
    means = joined.group_by("trade_id").agg(pl.col("bid_px").mean().alias("bid"), pl.len().alias("n"))
    return left.join(means, on="trade_id", how="left").select("trade_id", "bid", pl.col("n").fill_null(0))


QUESTIONS = [
    (
        "high bid of a day",
        f"select max(bid_px) from quote where {_s} and {_day}",
        f"select max(bid_px) from quote where {_s} and {_day}",
        lambda t, q: day(one(q)).select(pl.col("bid_px").max()),
    ),
    (
        "extremes of a symbol over all",
        f"select min(price), max(price) from trade where {_s}",
        f"select min(price), max(price) from trade where {_s}",
        lambda t, q: one(t).select(pl.col("price").min().alias("a"), pl.col("price").max().alias("b")),
    ),
    (
        "VWAP of a symbol, by five minutes",
        f"select time, vwap(price, size) from trade where {_s} and {_day} sample by 5m",
        f"select {bucket('5 minutes')} b, sum(price * size) / sum(size) from trade where {_s} and {_day} group by 1",
        lambda t, q: day(one(t)).group_by(pl.col("time").dt.truncate("5m")).agg(vwap().alias("v")),
    ),
    (
        "VWAP of ten symbols, by day",
        f"select time, symbol, vwap(price, size) from trade where symbol like '{SOME[1]}%' sample by 1d",
        "select time_bucket(interval '1 day', time::timestamp)::timestamp_ns b, symbol, sum(price * size) / sum(size) from trade "
        f"where symbol like '{SOME[1]}%' group by 1, 2",
        lambda t, q: t.filter(pl.col("symbol").str.starts_with(SOME[1]))
        .group_by(pl.col("time").dt.truncate("1d"), "symbol")
        .agg(vwap().alias("v"))
        .select("time", "symbol", "v"),
    ),
    (
        "VWAP of all symbols of a day",
        f"select symbol, vwap(price, size) from trade where {_day} group by symbol",
        f"select symbol, sum(price * size) / sum(size) from trade where {_day} group by symbol",
        lambda t, q: day(t).group_by("symbol").agg(vwap().alias("v")),
    ),
    (
        "snapshot of the market at a time",
        f"select symbol, time, bid_px, ask_px from quote where time <= '{AT.isoformat()}' latest on time partition by symbol",
        "select symbol, max(time) t, arg_max(bid_px, (time, lsn)), arg_max(ask_px, (time, lsn)) from quote "
        f"where time <= '{AT.isoformat()}' group by symbol",
        lambda t, q: q.filter(pl.col("time") <= AT)
        .sort("time")
        .group_by("symbol")
        .agg(pl.col("time").last(), pl.col("bid_px").last(), pl.col("ask_px").last()),
    ),
    (
        "newest trade of each symbol",
        "select symbol, time, price from trade latest on time partition by symbol",
        "select symbol, max(time) t, arg_max(price, (time, lsn)) from trade group by symbol",
        lambda t, q: t.sort("time").group_by("symbol").agg(pl.col("time").last(), pl.col("price").last()),
    ),
    (
        "quote of each trade of a symbol and day, with the spread",
        f"select t.trade_id, t.price, q.bid_px, q.ask_px - q.bid_px as spread from trade t asof join quote q "
        f"match_condition (t.time >= q.time) on t.symbol = q.symbol where t.{_s} and {_tday}",
        f"select t.trade_id, t.price, q.bid_px, q.ask_px - q.bid_px from (select * from trade where {_s} and {_day}) t asof left join "
        f"(select * from quote where {_s}) q on t.symbol = q.symbol and t.time >= q.time",
        lambda t, q: asof(day(one(t)), one(q)).select(
            "trade_id", "price", "bid_px", (pl.col("ask_px") - pl.col("bid_px")).alias("spread")
        ),
    ),
    (
        "quote of each trade of all, distance to the middle",
        "select count(q.bid_px), avg(abs(t.price - (q.bid_px + q.ask_px) / 2)) from trade t asof join quote q "
        "match_condition (t.time >= q.time) on t.symbol = q.symbol",
        "select count(q.bid_px), avg(abs(t.price - (q.bid_px + q.ask_px) / 2)) from trade t asof left join quote q "
        "on t.symbol = q.symbol and t.time >= q.time",
        lambda t, q: asof(t.select("symbol", "time", "price"), q.select("symbol", "time", "bid_px", "ask_px")).select(
            pl.col("bid_px").count().cast(pl.Int64).alias("n"),
            (pl.col("price") - (pl.col("bid_px") + pl.col("ask_px")) / 2).abs().mean().alias("d"),
        ),
    ),
    (
        "mark-outs of a symbol and day at 0, 1, 5, 30 s",
        f"select h.offset, avg(mid(q.bid_px, q.ask_px) - t.price) from trade t horizon join quote q on t.symbol = q.symbol "
        f"list (0, 1s, 5s, 30s) as h where t.{_s} and {_tday} group by h.offset",
        f"select ns, avg((bid_px + ask_px) / 2 - price) from (select t.*, ns, t.time + to_microseconds(ns // 1000) as late "
        f"from (select * from trade where {_s} and {_day}) t, (select unnest([0, 1000000000, 5000000000, 30000000000]) as ns)) t "
        f"asof left join (select symbol, time as quoted, bid_px, ask_px from quote where {_s}) q on t.symbol = q.symbol and t.late >= q.quoted "
        f"group by 1",
        markout,
    ),
    (
        "statistics of a hundred symbols and a day, by minute",
        f"select time, symbol, count(*), min(price), max(price), avg(price), stddev(price) from trade where symbol like '{SOME[2]}%' and {_day} "
        f"sample by 1m",
        f"select {bucket('1 minute')} b, symbol, count(*), min(price), max(price), avg(price), stddev(price) from trade "
        f"where symbol like '{SOME[2]}%' and {_day} group by 1, 2",
        lambda t, q: day(t.filter(pl.col("symbol").str.starts_with(SOME[2])))
        .group_by(pl.col("time").dt.truncate("1m").alias("b"), "symbol")
        .agg(
            pl.len().cast(pl.Int64).alias("n"),
            pl.col("price").min().alias("lo"),
            pl.col("price").max().alias("hi"),
            pl.col("price").mean().alias("m"),
            pl.col("price").std().alias("s"),
        ),
    ),
    (
        "top ten movers of a day",
        f"select symbol, last(price) / first(price) - 1 as move from trade where {_day} group by symbol order by move desc, symbol limit 10",
        f"select symbol, last(price order by time, lsn) / first(price order by time, lsn) - 1 as move from trade where {_day} "
        f"group by symbol order by move desc, symbol limit 10",
        lambda t, q: day(t)
        .sort("time")
        .group_by("symbol")
        .agg((pl.col("price").last() / pl.col("price").first() - 1).alias("move"))
        .sort(["move", "symbol"], descending=[True, False])
        .limit(10),
    ),
    (
        "top ten by volume of a day",
        f"select symbol, sum(size) as volume from trade where {_day} group by symbol order by volume desc, symbol limit 10",
        f"select symbol, sum(size) as volume from trade where {_day} group by symbol order by volume desc, symbol limit 10",
        lambda t, q: day(t)
        .group_by("symbol")
        .agg(pl.col("size").sum().alias("volume"))
        .sort(["volume", "symbol"], descending=[True, False])
        .limit(10),
    ),
    (
        "volume curve of a symbol: by half an hour of the day",
        f"select extract(hour from time) * 2 + floor(extract(minute from time) / 30) as slot, sum(size) from trade where {_s} group by 1",
        f"select extract(hour from time::timestamp) * 2 + floor(extract(minute from time::timestamp) / 30) as slot, sum(size) from trade where {_s} group by 1",
        lambda t, q: one(t)
        .group_by((pl.col("time").dt.hour().cast(pl.Float64) * 2 + (pl.col("time").dt.minute() // 30)).alias("slot"))
        .agg(pl.col("size").sum()),
    ),
    (
        "theoretical profit of buying at the first and selling at the last price of each day",
        "select symbol, sum(profit) from (select time, symbol, last(price) - first(price) as profit from trade "
        f"where symbol like '{SOME[0]}%' sample by 1d) group by symbol",
        "select symbol, sum(profit) from (select time_bucket(interval '1 day', time::timestamp) d, symbol, last(price order by time, lsn) - "
        f"first(price order by time, lsn) as profit from trade where symbol like '{SOME[0]}%' group by 1, 2) group by symbol",
        lambda t, q: t.filter(pl.col("symbol").str.starts_with(SOME[0]))
        .sort("time")
        .group_by("symbol", pl.col("time").dt.truncate("1d"))
        .agg((pl.col("price").last() - pl.col("price").first()).alias("profit"))
        .group_by("symbol")
        .agg(pl.col("profit").sum()),
    ),
    (
        "bars of a symbol and day, by minute",
        f"select symbol, time, {_bars} from trade where {_s} and {_day} sample by 1m",
        f"select symbol, {bucket('1 minute')} b, {_duck_bars} from trade where {_s} and {_day} group by 1, 2",
        lambda t, q: bars(day(one(t)), "1m"),
    ),
    (
        "bars of all symbols and a day, by minute",
        f"select symbol, time, {_bars} from trade where {_day} sample by 1m",
        f"select symbol, {bucket('1 minute')} b, {_duck_bars} from trade where {_day} group by 1, 2",
        lambda t, q: bars(day(t), "1m"),
    ),
    (
        "bars of all symbols and an hour, by second",
        f"select symbol, time, {_bars} from trade where {_hour} sample by 1s",
        f"select symbol, {bucket('1 second')} b, {_duck_bars} from trade where {_hour} group by 1, 2",
        lambda t, q: bars(hour(t), "1s"),
    ),
    (
        "one trade by its number",
        "select symbol, price from trade where trade_id = 1234567",
        "select symbol, price from trade where trade_id = 1234567",
        lambda t, q: t.filter(pl.col("trade_id") == 1234567).select("symbol", "price"),
    ),
    (
        "trades of a symbol and an hour",
        f"select time, price, size from trade where {_s} and {_hour}",
        f"select time, price, size from trade where {_s} and {_hour}",
        lambda t, q: hour(one(t)).select("time", "price", "size"),
    ),
    (
        "last hundred trades of a symbol",
        f"select time, price, size from trade where {_s} order by time desc limit 100",
        f"select time, price, size from trade where {_s} order by time desc limit 100",
        lambda t, q: one(t).select("time", "price", "size").sort("time", descending=True).limit(100),
    ),
    (
        "number of trades, first and last time",
        "select count(*), min(time), max(time) from trade",
        "select count(*), min(time), max(time) from trade",
        lambda t, q: t.select(
            pl.len().cast(pl.Int64).alias("n"), pl.col("time").min().alias("a"), pl.col("time").max().alias("b")
        ),
    ),
    (
        "turnover of all trades",
        "select sum(price * size) from trade",
        "select sum(price * size) from trade",
        lambda t, q: t.select((pl.col("price") * pl.col("size")).sum()),
    ),
    (
        "number of trades by two conditions on values",
        "select count(*) from trade where price > 300 and size < 50",
        "select count(*) from trade where price > 300 and size < 50",
        lambda t, q: t.filter((pl.col("price") > 300) & (pl.col("size") < 50)).select(pl.len().cast(pl.Int64)),
    ),
    (
        "symbols traded in an hour",
        f"select count(distinct symbol) from trade where {_hour}",
        f"select count(distinct symbol) from trade where {_hour}",
        lambda t, q: hour(t).select(pl.col("symbol").n_unique().cast(pl.Int64)),
    ),
    (
        "moving average of twenty trades",
        f"select trade_id, avg(price) over (order by time, lsn rows 19 preceding) from trade where {_s} and {_day}",
        f"select trade_id, avg(price) over (order by time, lsn rows 19 preceding) from trade where {_s} and {_day}",
        lambda t, q: day(one(t)).sort("time").select("trade_id", pl.col("price").rolling_mean(20, min_samples=1)),
    ),
    (
        "volatility of a symbol: of the returns of minutes",
        f"select stddev(r) from (select ln(p / lag(p) over (order by time)) as r from (select time, last(price) as p from trade where {_s} sample by 1m))",
        f"select stddev(r) from (select ln(p / lag(p) over (order by b)) as r from (select {bucket('1 minute')} b, last(price order by time, lsn) "
        f"as p from trade where {_s} group by 1))",
        lambda t, q: one(t)
        .sort("time")
        .group_by(pl.col("time").dt.truncate("1m"))
        .agg(pl.col("price").last().alias("p"))
        .sort("time")
        .select((pl.col("p") / pl.col("p").shift(1)).log().std()),
    ),
    (
        "spread of a symbol, by hour",
        f"select time, avg(ask_px - bid_px) from quote where {_s} sample by 1h",
        f"select time_bucket(interval '1 hour', time::timestamp)::timestamp_ns b, avg(ask_px - bid_px) from quote where {_s} group by 1",
        lambda t, q: one(q).group_by(pl.col("time").dt.truncate("1h")).agg((pl.col("ask_px") - pl.col("bid_px")).mean()),
    ),
    (
        "median and 95th percentile of the sizes of a symbol",
        f"select median(size), percentile_cont(0.95) within group (order by size) from trade where {_s}",
        f"select median(size), quantile_cont(size, 0.95) from trade where {_s}",
        lambda t, q: one(t).select(
            pl.col("size").median().alias("m"), pl.col("size").quantile(0.95, interpolation="linear").alias("p")
        ),
    ),
    (
        "mean bid within a second of each trade of a symbol and day",
        f"select t.trade_id, avg(q.bid_px), count(q.bid_px) from trade t window join quote q on t.symbol = q.symbol "
        f"range between 1s preceding and 1s following exclude prevailing where t.{_s} and {_tday}",
        f"select t.trade_id, avg(q.bid_px), count(q.bid_px) from (select * from trade where {_s} and {_day}) t left join (select * from quote where {_s}) q "
        f"on q.time >= t.time - interval '1 second' and q.time <= t.time + interval '1 second' group by t.trade_id",
        window,
    ),
    (
        "imbalance of the book of a symbol and day, by minute",
        f"select time, avg((bid_sz - ask_sz) / (bid_sz + ask_sz)) from quote where {_s} and {_day} sample by 1m",
        f"select {bucket('1 minute')} b, avg((bid_sz - ask_sz) / (bid_sz + ask_sz)) from quote where {_s} and {_day} group by 1",
        lambda t, q: day(one(q))
        .group_by(pl.col("time").dt.truncate("1m"))
        .agg(((pl.col("bid_sz") - pl.col("ask_sz")) / (pl.col("bid_sz") + pl.col("ask_sz"))).mean()),
    ),
    (
        "volume of the first half hour, by symbol, a day",
        f"select symbol, sum(size) from trade where {_day} and in_session(time, '{SESSION}', 'America/New_York') group by symbol",
        f"select symbol, sum(size) from trade where time >= '{SESSION_TIMES[0].isoformat()}' and time < '{SESSION_TIMES[1].isoformat()}' "
        f"group by symbol",
        lambda t, q: t.filter((pl.col("time") >= SESSION_TIMES[0]) & (pl.col("time") < SESSION_TIMES[1]))
        .group_by("symbol")
        .agg(pl.col("size").sum()),
    ),
]
