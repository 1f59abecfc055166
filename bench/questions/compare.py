"""Asks the questions of `questions.py` of tapestore (Arrow Flight SQL), DuckDB and Polars over the same records, compares the
answers, and times all three in turns.

    python3 data.py DIR/made                                  # Parquet files from a seed
    tape import DIR/made/trades.parquet --kind trade          # into a served store; the same for quotes
    tape export DIR/out                                       # what DuckDB and Polars read
    tape-query serve                                          # what is asked here
    python3 compare.py --export DIR/out --uri grpc://127.0.0.1:32010 [--rounds 5] [--cold STORE] [--only WORDS] [--no-polars]
                       [--postgres 'host=127.0.0.1 port=5433 user=ann dbname=tapestore'] [--embedded EXAMPLE STORE]

Needs duckdb, polars, pyarrow, adbc-driver-flightsql from PyPI, and psycopg for `--postgres`, which asks each question over that
protocol too: its answer has to be the same to the microsecond, which is what that protocol carries. Prints a line for each question:
the median of each engine in milliseconds (`tapestore` is by ADBC), how many times as long as tapestore, by the faster of its
ways, the faster of the others took, and the bytes of columns that tapestore read of those in its files, as `EXPLAIN ANALYZE` says.
`--embedded target/release/examples/embedded STORE` asks the engine within a process of its own, as DuckDB and Polars are asked in
this one; that process takes the time. Exits with 1 if an answer differs. Each engine keeps its connection and its cursor, as a program does: to close a cursor of ADBC takes
its driver 2 to 5 ms.

With `--cold STORE` nothing of the files is in memory before each answer (root only): processes that map files of the store give
those pages back, then the page cache is dropped, and what stayed is printed.
"""

import argparse
import ctypes
import datetime
import decimal
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

import adbc_driver_flightsql.dbapi as flight
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from questions import QUESTIONS


def rows(table):
    """The rows of an Arrow table, sorted; times as integers, decimals and dictionaries as plain values."""
    columns = []
    for column in table.columns:
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ns")).cast(pa.int64()) if column.type.tz is None else column.cast(pa.int64())
        if pa.types.is_decimal(column.type) or pa.types.is_integer(column.type):
            column = column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column.cast(pa.int64())
        columns.append(column.to_pylist())
    key = lambda row: tuple((value is None, round(value, 6) if isinstance(value, float) else value) for value in row)
    return sorted(zip(*columns), key=key) if columns else []


def postgres_rows(answer):
    """The rows of psycopg as `rows` has them."""

    def plain(value):
        if isinstance(value, datetime.datetime):
            return round((value - datetime.datetime(1970, 1, 1)) / datetime.timedelta(microseconds=1)) * 1000
        return float(value) if isinstance(value, decimal.Decimal) else value

    key = lambda row: tuple((value is None, round(value, 6) if isinstance(value, float) else value) for value in row)
    return sorted((tuple(plain(value) for value in row) for row in answer), key=key)


def to_microseconds(table):
    """The table with the times that PostgreSQL's protocol can carry."""
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            micros = pc.floor_temporal(table.column(at), unit="microsecond")
            table = table.set_column(at, field.name, micros)
    return table


def differ(a, b):
    """The first difference of two lists of rows; None if they are equal, numbers within 1e-9 of each other."""
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} rows"
    for x, y in zip(a, b):
        for left, right in zip(x, y):
            if isinstance(left, str) or isinstance(right, str) or left is None or right is None:
                equal = left == right
            else:
                equal = abs(left - right) <= 1e-9 * max(1.0, abs(left), abs(right))
            if not equal:
                return f"{x} and {y}"
    return None


LIBC = ctypes.CDLL(None, use_errno=True)
PROCESS_MADVISE, PIDFD_OPEN, MADV_PAGEOUT = 440, 434, 21


class Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def mapped(store):
    """The processes that map files of the store, with the ranges."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "maps").read_text().splitlines()
        except OSError:
            continue
        ends = [line.split()[0].split("-") for line in lines if f" {store}/" in line]
        if ends:
            yield int(process.name), [(int(start, 16), int(end, 16)) for start, end in ends]


def drop_cache(store):
    """Takes all files out of memory; pages that a process maps stay unless that process gives them back."""
    os.sync()
    for process, ranges in mapped(store):
        fd = LIBC.syscall(PIDFD_OPEN, process, 0)
        for start, end in ranges:
            one = Range(start, end - start)
            LIBC.syscall(PROCESS_MADVISE, fd, ctypes.byref(one), 1, MADV_PAGEOUT, 0)
        os.close(fd)
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def resident(store):
    """KiB of the store's files that processes have in memory."""
    sizes = 0
    for process, _ in mapped(store):
        is_ours = False
        for line in pathlib.Path(f"/proc/{process}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-", line):
                is_ours = f" {store}/" in line
            elif is_ours and line.startswith("Rss:"):
                sizes += int(line.split()[1])
    return sizes


def bytes_read(lines):
    """What `EXPLAIN ANALYZE` says of the bytes that were read and that are stored; each of several scans of a table counts."""
    text = "\n".join(lines)
    scale = {"": 1, " K": 1e3, " M": 1e6, " B": 1e9}
    sum_of = lambda name: sum(float(n) * scale[s] for n, s in re.findall(rf"{name}=([0-9.]+)( [KMB])?", text))
    return sum_of("bytes_read"), sum_of("bytes_stored")


def polars_frames(export):
    def frame(kind, prices, sizes):
        scaled = [(pl.col(name) / 1e9).alias(name) for name in prices + sizes]
        time_of = pl.col("index_time").dt.replace_time_zone(None).alias("time")
        lazy = pl.scan_parquet(export / f"{kind}.parquet")
        return lazy.with_columns(time_of, pl.col("instrument").alias("symbol"), *scaled)

    return frame("trade", ["price"], ["size"]), frame("quote", ["bid_px", "ask_px"], ["bid_sz", "ask_sz"])


def duck(export):
    base = duckdb.connect()
    base.execute("set timezone = 'UTC'; set enable_progress_bar = false")
    shared = "lsn, instrument as symbol, (index_time at time zone 'UTC')::timestamp_ns as time"
    base.execute(
        f"create view trade as select {shared}, price / 1e9 as price, size / 1e9 as size, trade_id from '{export}/trade.parquet'"
    )
    base.execute(
        f"create view quote as select {shared}, bid_px / 1e9 as bid_px, ask_px / 1e9 as ask_px, bid_sz / 1e9 as bid_sz, "
        f"ask_sz / 1e9 as ask_sz from '{export}/quote.parquet'"
    )
    return base


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--export", type=pathlib.Path, required=True)
    parser.add_argument("--uri", default="grpc://127.0.0.1:32010")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--cold", metavar="STORE", default="")
    parser.add_argument("--no-polars", action="store_true")
    parser.add_argument("--postgres", default="")
    parser.add_argument("--embedded", nargs=2, metavar=("EXAMPLE", "STORE"))
    options = parser.parse_args()

    ours, base, frames = flight.connect(options.uri), duck(options.export), polars_frames(options.export)

    ours_cursor = ours.cursor()

    def ask_ours(sql):
        ours_cursor.execute(sql)
        return ours_cursor.fetch_arrow_table()

    postgres = None
    if options.postgres:
        import psycopg

        postgres = psycopg.connect(options.postgres, autocommit=True).cursor()

    def ask_postgres(sql):
        return postgres.execute(sql).fetchall()

    embedded = None
    if options.embedded:
        embedded = subprocess.Popen(options.embedded, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask_embedded(sql):
        print(" ".join(sql.split()), file=embedded.stdin, flush=True)
        count, took = embedded.stdout.readline().split(maxsplit=1)
        if count == "error":
            raise RuntimeError(took)
        return int(count), float(took)

    failed, kept = 0, 0
    heads = " ".join(f"{head:>10s}" for head in ("tapestore", "psycopg", "embedded", "DuckDB", "Polars"))
    print(f"{'question':84s} {'rows':>8s} {heads} {'ratio':>7s} {'MB read':>8s} {'stored':>7s}  answers")
    for name, sql, duck_sql, polars_of in QUESTIONS:
        if options.only not in name:
            continue
        engines = {"tapestore": lambda: ask_ours(sql), "DuckDB": lambda: base.execute(duck_sql).to_arrow_table()}
        if postgres:
            engines["psycopg"] = lambda: ask_postgres(sql)
        if embedded:
            engines["embedded"] = lambda: ask_embedded(sql)
        if not options.no_polars:
            engines["Polars"] = lambda: polars_of(*frames).collect().to_arrow()
        times, answers, errors = {which: [] for which in engines}, {}, {}
        for _ in range(options.rounds):
            for which, engine in engines.items():
                if options.cold:
                    drop_cache(options.cold)
                    kept = max(kept, resident(options.cold))
                began = time.perf_counter()
                try:
                    answers[which] = engine()
                except Exception as error:  # An engine that cannot answer is a result, and said.
                    errors[which] = str(error).splitlines()[0]
                took = (time.perf_counter() - began) * 1e3
                times[which].append(answers[which][1] if which == "embedded" and which not in errors else took)
        medians = {which: statistics.median(of) for which, of in times.items() if which not in errors}
        wrong = [f"{which}: {error[:160]}" for which, error in errors.items()]
        found = rows(answers["tapestore"]) if "tapestore" in answers else None
        for which in [which for which in answers if which != "tapestore" and found is not None]:
            if which == "embedded":
                difference = None if answers[which][0] == len(found) else f"{answers[which][0]} rows"
            elif which == "psycopg":
                difference = differ(rows(to_microseconds(answers["tapestore"])), postgres_rows(answers[which]))
            else:
                difference = differ(found, rows(answers[which]))
            wrong += [f"{which} differs: {difference[:200]}"] if difference else []
        failed += bool(wrong)
        ours_best = min((medians[which] for which in ("tapestore", "psycopg", "embedded") if which in medians), default=float("nan"))
        others = [medians[which] for which in ("DuckDB", "Polars") if which in medians]
        ratio = min(others) / ours_best if others else float("nan")
        columns = ["tapestore", "psycopg", "embedded", "DuckDB", "Polars"]
        shown = " ".join(f"{medians[which]:10.2f}" if which in medians else f"{'-':>10s}" for which in columns)
        count = len(found) if found is not None else 0
        plan = ask_ours(f"explain analyze {sql}").column("plan").to_pylist() if found is not None else []
        read, stored = (f"{number / 1e6:.1f}" for number in bytes_read(plan))
        said = "equal" if not wrong else "; ".join(wrong)
        print(f"{name:84s} {count:8d} {shown} {ratio:7.2f} {read:>8s} {stored:>7s}  {said}", flush=True)
    if options.cold:
        print(f"at most {kept} KiB of the store's files were in memory before an answer")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
