//! Owns: the functions that SQL over market data adds.
//!
//! | function | result |
//! |---|---|
//! | `first(x)`, `last(x)` | the value of the first, last row by time and LSN |
//! | `ohlc(price, size)` | a struct of open, high, low, close, volume, trades |
//! | `vwap(price, size)` | sum of price × size / sum of size; sums in 128 bits |
//! | `notional(price, size)` | sum of price × size, exact |
//! | `twap(x)` | the average weighted by how long each value stood |
//! | `ema(x, n) OVER (...)`, `returns(x) OVER (...)` | exponential moving average; change from the row before |
//! | `exact_sum(x)` | the sum of a price or size, exact |
//! | `sum(x)`, `avg(x)` of a price or size | as `DOUBLE`: calculated in 128 bits, then rounded once |
//! | `time_bucket(length, time [, zone [, origin]])`, `xbar` | the start of the bucket in which the time lies |
//! | `in_session(time, '09:30-16:00', zone)` | whether the clock of the zone shows a time in the session |
//! | `mid(bid, ask)`, `spread(bid, ask)`, `imbalance(bid_size, ask_size)` | of a quote |
//!
//! What must hold: `first`, `last` and `ohlc` do not depend on how a scan is split over threads.

pub mod aggregates;
pub mod ordered;
pub mod rewrite;
pub mod running;
pub mod scalars;
pub mod twap;
