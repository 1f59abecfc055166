//! Owns: sizes and times on the screen of `tape top`: three digits and a unit.

/// `number`, at least 0, with three digits.
fn three(number: f64) -> String {
    match number {
        0.0..9.995 => format!("{number:.2}"),
        9.995..99.95 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

/// `count` bytes with three digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 5] = [(1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.iter().find(|(size, _)| count >= *size);
    unit.map_or_else(|| format!("{count} B"), |(size, name)| format!("{} {name}", three(count as f64 / *size as f64)))
}

/// A time of `ns` nanoseconds with three digits.
pub fn duration(ns: u64) -> String {
    let units = [(86_400e9, "d"), (3600e9, "h"), (60e9, "min"), (1e9, "s"), (1e6, "ms"), (1e3, "us")];
    let unit = units.iter().find(|(size, _)| ns as f64 >= *size);
    unit.map_or_else(|| format!("{ns} ns"), |(size, name)| format!("{} {name}", three(ns as f64 / size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!([0, 1023, 1024, 257_722_777, 1 << 40].map(bytes), ["0 B", "1023 B", "1.00 KiB", "246 MiB", "1.00 TiB"]);
        let times = [999, 1500, 99_960, 2_500_000_000, 90_000_000_000, 200_000_000_000_000].map(duration);
        assert_eq!(times, ["999 ns", "1.50 us", "100 us", "2.50 s", "1.50 min", "2.31 d"]);
    }
}
