"""How old the newest record of a SQL answer is while records come, and what a query that scans everything costs storage.

    tape-storage & tape-query serve &
    python3 live.py age --symbol SIM:00000 --seconds 20        # beside: tape publish --sim --rate x5, 500,000 records a second
                    [--postgres 'host=127.0.0.1 port=5433 user=ann dbname=tapestore']
    python3 live.py cost --tape TAPE --records 20000000         # publishes alone and beside scans, in turns

`age` asks for the newest record of a symbol at `appended`, one question after the other, by ADBC and with `--postgres` by psycopg in
turns, and prints the time from its append to the arrival of the answer: a record may have been the newest for a while. `cost` prints the records a second of each run.
"""

import argparse
import statistics
import subprocess
import threading
import time

import adbc_driver_flightsql.dbapi as flight


def connect(uri):
    connection = flight.connect(uri, autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("set at = 'appended'")
        cursor.fetch_arrow_table()
    return connection


def age(options):
    sql = f"select cast(ingested as bigint), lsn from quote where symbol = '{options.symbol}' order by time desc limit 1"
    cursor = connect(options.uri).cursor()

    def adbc():
        cursor.execute(sql)
        return [tuple(row.values()) for row in cursor.fetch_arrow_table().to_pylist()]

    ways = {"ADBC": adbc}
    if options.postgres:
        import psycopg

        other = psycopg.connect(options.postgres, autocommit=True).cursor()
        other.execute("set at = 'appended'")
        ways["psycopg"] = lambda: other.execute(sql).fetchall()
    ages, took = {way: [] for way in ways}, {way: [] for way in ways}
    ends, first = time.time() + options.seconds, None
    while time.time() < ends:
        for way, ask in ways.items():
            began = time.time_ns()
            rows = ask()
            now = time.time_ns()
            for ingested, lsn in rows:
                first = first or (now, int(lsn))
                last = (now, int(lsn))
                ages[way].append((now - int(ingested)) / 1e6)
                took[way].append((now - began) / 1e6)
    for way in ways:
        for what, values in ((f"{way}: age of the newest record, ms", ages[way]), (f"{way}: time of the answer, ms", took[way])):
            values.sort()
            at = lambda p: values[min(len(values) - 1, int(p * len(values)))]
            print(f"{what:40s} n={len(values)} p50={at(0.5):.2f} p90={at(0.9):.2f} p99={at(0.99):.2f} max={values[-1]:.2f}")
    print(f"{(last[1] - first[1]) / (last[0] - first[0]) * 1e9:,.0f} records a second came meanwhile")


def cost(options):
    rates = {"alone": [], "beside scans": []}
    for turn in range(options.turns):
        # Each goes first every other time, and begins when the records of the one before are flushed and merged.
        for which in list(rates) if turn % 2 == 0 else reversed(list(rates)):
            subprocess.run([options.tape, "flush", "--store", options.store], check=True, capture_output=True)
            time.sleep(options.pause)
            stop, scans = threading.Event(), []

            def scan():
                connection = connect(options.uri)
                with connection.cursor() as cursor:
                    while not stop.is_set():
                        cursor.execute("select sum(bid_px), sum(ask_px), sum(bid_sz), count(*) from quote where bid_px > 0")
                        cursor.fetch_arrow_table()
                        scans.append(1)

            thread = threading.Thread(target=scan)
            if which != "alone":
                thread.start()
                time.sleep(1)
            command = [options.tape, "publish", "--sim", "--rate", "max", "--records", str(options.records), "--seed", str(turn + 1)]
            began = time.time()
            subprocess.run(command + ["--store", options.store], check=True, capture_output=True)
            rates[which].append(options.records / (time.time() - began) / 1e6)
            stop.set()
            if which != "alone":
                thread.join()
            print(f"{which:14s} {rates[which][-1]:.2f} M records/s, {len(scans)} scans", flush=True)
    medians = {which: statistics.median(values) for which, values in rates.items()}
    print(f"medians: {medians}, ratio {medians['beside scans'] / medians['alone']:.3f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["age", "cost"])
    parser.add_argument("--uri", default="grpc://127.0.0.1:32010")
    parser.add_argument("--symbol", default="SIM:00000")
    parser.add_argument("--postgres", default="")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tape", default="tape")
    parser.add_argument("--store", default="tapestore-data")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--pause", type=float, default=5)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    age(options) if options.what == "age" else cost(options)


if __name__ == "__main__":
    main()
