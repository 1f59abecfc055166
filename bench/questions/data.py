"""Makes a month of trades and quotes of many instruments as two Parquet files, from a seed.

    python3 data.py DIR [--trades 20000000] [--quotes 20000000] [--instruments 2000] [--days 21]

Trades and quotes lie in the session 13:30 to 20:00 UTC of weekdays from 2024-08-01 on. A few instruments have most of the
records, as in markets. Prices walk; they and sizes are integers, units of 1e-9, as the store keeps them.
"""

import argparse
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SESSION_NS = 6 * 3600 * 10**9 + 1800 * 10**9
CHUNK = 2_000_000


def days(count):
    """The starts of the sessions of the first weekdays."""
    all_days = np.datetime64("2024-08-01") + np.arange(2 * count)
    weekdays = all_days[np.is_busday(all_days)][:count]
    return (weekdays.astype("datetime64[ns]") + np.timedelta64(13 * 60 + 30, "m")).view("int64")


def times(random, rows, starts):
    """Sorted times, uniform within the sessions."""
    return np.sort(starts[random.integers(0, len(starts), rows)] + random.integers(0, SESSION_NS, rows))


def symbols(random, rows, count):
    weights = 1.0 / np.arange(1, count + 1) ** 0.8
    return random.choice(count, rows, p=weights / weights.sum()).astype(np.int32)


def field(name, of, scale=False):
    return pa.field(name, of, metadata={b"scale": b"9"} if scale else None)


def write(path, fields, columns, names):
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        rows = len(columns["symbol"])
        for begin in range(0, rows, CHUNK):
            end = min(begin + CHUNK, rows)
            arrays = []
            for of in fields:
                if of.name == "instrument":
                    part = pa.DictionaryArray.from_arrays(pa.array(columns["symbol"][begin:end]), names).cast(pa.string())
                else:
                    part = pa.array(columns[of.name][begin:end]).cast(of.type)
                arrays.append(part)
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--trades", type=int, default=20_000_000)
    parser.add_argument("--quotes", type=int, default=20_000_000)
    parser.add_argument("--instruments", type=int, default=2_000)
    parser.add_argument("--days", type=int, default=21)
    parser.add_argument("--seed", type=int, default=20_240_801)
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(options.seed)
    starts = days(options.days)
    names = pa.array([f"SIM:{number:05}" for number in range(options.instruments)])
    base = random.integers(5_000, 50_000, options.instruments)

    def prices(symbol):
        # A walk of the whole market, and noise of each record, in cents.
        walk = np.cumsum(random.integers(-1, 2, len(symbol)), dtype=np.int64) // 100
        return base[symbol] + walk % 400 + random.integers(-20, 21, len(symbol))

    rows = options.trades
    at, symbol = times(random, rows, starts), symbols(random, rows, options.instruments)
    columns = {
        "symbol": symbol,
        "ts_recv": at,
        "price": prices(symbol) * 10**7,
        "size": random.integers(1, 1_000, rows).astype(np.uint64) * 10**9,
        "trade_id": np.arange(1, rows + 1, dtype=np.uint64),
    }
    fields = [
        field("instrument", pa.string()),
        field("ts_recv", pa.timestamp("ns", "UTC")),
        field("price", pa.int64(), True),
        field("size", pa.uint64(), True),
        field("trade_id", pa.uint64()),
    ]
    write(options.dir / "trades.parquet", fields, columns, names)

    rows = options.quotes
    at, symbol = times(random, rows, starts), symbols(random, rows, options.instruments)
    bid = prices(symbol)
    columns = {
        "symbol": symbol,
        "ts_recv": at,
        "bid_px": bid * 10**7,
        "ask_px": (bid + random.integers(1, 6, rows)) * 10**7,
        "bid_sz": random.integers(1, 5_000, rows).astype(np.uint64) * 10**9,
        "ask_sz": random.integers(1, 5_000, rows).astype(np.uint64) * 10**9,
    }
    fields = [
        field("instrument", pa.string()),
        field("ts_recv", pa.timestamp("ns", "UTC")),
        field("bid_px", pa.int64(), True),
        field("ask_px", pa.int64(), True),
        field("bid_sz", pa.uint64(), True),
        field("ask_sz", pa.uint64(), True),
    ]
    write(options.dir / "quotes.parquet", fields, columns, names)


if __name__ == "__main__":
    main()
