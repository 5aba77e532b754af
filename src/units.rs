//! Sizes, times, shares and numbers as people type and read them.

use std::time::Duration;

/// How many rows may go wrong before the exit code is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxFaults {
    Rows(u64),
    Percent(f64),
}

impl MaxFaults {
    pub fn exceeded(self, faults: u64, rows: u64) -> bool {
        match self {
            Self::Rows(most) => faults > most,
            #[expect(clippy::cast_precision_loss, reason = "a share of rows; 2^53 of them are beyond us")]
            Self::Percent(most) => faults as f64 > rows as f64 * most / 100.0,
        }
    }
}

pub fn parse_max_faults(text: &str) -> Result<MaxFaults, String> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(MaxFaults::Percent(percent)),
            _ => Err("a percentage is from 0% to 100%".to_owned()),
        },
        None => {
            text.parse().map(MaxFaults::Rows).map_err(|_| "a number of rows, or a percentage such as 1%".to_owned())
        }
    }
}

/// `1000`, `100MB` (10^6), `64MiB` (2^20); at least one byte.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = text.strip_prefix(digits).unwrap_or_default().trim();
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("`{unit}` is no unit; use kB, MB, GB, KiB, MiB or GiB")),
    };
    let count: u64 = digits.parse().map_err(|_| "a size is a whole number, e.g. 1000, 100MB or 64MiB".to_owned())?;
    count.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(|| "that is no size".to_owned())
}

/// [`parse_duration`], and not 0: a provider that is asked without a pause refuses.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|time| if time.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(time) })
}

/// `2`, `1.5s`, `250ms`, `10m`, `24h`, `1d`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: f64 = match text.strip_prefix(digits).unwrap_or_default() {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        unit => return Err(format!("`{unit}` is no unit of time; use ms, s, m, h or d")),
    };
    let count: f64 = digits.trim().parse().map_err(|_| "a time is a number, e.g. 250ms, 60s or 2h".to_owned())?;
    Duration::try_from_secs_f64(count * seconds).map_err(|_| "that is no time".to_owned())
}

/// The time now: RFC 3339, UTC, whole seconds.
pub fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string()
}

/// The sum of numbers that others wrote: one that is too large stays too large.
pub fn sum(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

/// `1 chunk`, `2 chunks`, `2 batches`: a number of things whose plural is regular.
pub fn count(number: impl TryInto<u64>, thing: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    let hisses = ["ch", "s", "x"].iter().any(|end| thing.ends_with(end));
    match (number, thing.strip_suffix("ry")) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{number} {stem}ries"),
        (_, None) if hisses => format!("{number} {thing}es"),
        (_, None) => format!("{number} {thing}s"),
    }
}

/// A number of things, written in digits: at least 1 where `T` has no 0.
pub fn parse_count<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    let text = text.trim();
    text.parse().map_err(|_| {
        let digits: String = text.chars().filter(|c| !matches!(c, ',' | '_' | ' ')).collect();
        let (digits, factor) = match digits.char_indices().next_back() {
            Some((at, 'k' | 'K')) => (digits.get(..at).unwrap_or_default(), 1_000),
            Some((at, 'm' | 'M')) => (digits.get(..at).unwrap_or_default(), 1_000_000),
            _ => (digits.as_str(), 1),
        };
        let meant = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor)).filter(|meant| *meant > 0);
        format!("a whole number in digits is wanted, e.g. {}", meant.unwrap_or(10_000))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(parse_bytes("100MB"), Ok(100_000_000));
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("17"), Ok(17));
        for bad in ["", "MB", "-1", "0", "1.5MB", "10XB", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        for bad in ["", "s", "-1s", "1y", "inf", "nan"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0_u64, 1, 2].map(|n| count(n, "chunk")), ["0 chunks", "1 chunk", "2 chunks"]);
        assert_eq!([count(1_usize, "batch"), count(3_usize, "batch")], ["1 batch", "3 batches"]);
        assert_eq!(count(2_usize, "directory"), "2 directories");
    }

    #[test]
    fn a_share_of_faults() {
        let percent = parse_max_faults("1%").expect("valid");
        assert!(!percent.exceeded(1, 100) && percent.exceeded(2, 100));
        assert!(!MaxFaults::Rows(0).exceeded(0, 5) && MaxFaults::Rows(0).exceeded(1, 5));
        assert!(parse_max_faults("101%").is_err() && parse_max_faults("x").is_err());
    }

    #[test]
    fn r10_18_a_number_says_what_it_looks_like() {
        assert_eq!(parse_count::<u64>(" 17 "), Ok(17));
        for (text, meant) in [("10k", "10000"), ("2M", "2000000"), ("10,000", "10000"), ("ten", "10000"), ("", "10000")]
        {
            let told = parse_count::<u32>(text).expect_err(text);
            assert!(told.ends_with(&format!("e.g. {meant}")), "{text}: {told}");
        }
        assert!(parse_count::<std::num::NonZeroU32>("0").is_err());
    }
}
