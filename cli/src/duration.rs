//! Durations as people write them: `500ms`, `30s`, `1.5m`, `1h`, `1d`; a number alone is seconds.

use std::time::Duration;

/// Ten years: more is a mistake.
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;

/// Parses a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0), ("", 1.0)];
    let number = |(unit, factor): (&str, f64)| Some((text.strip_suffix(unit)?, factor));
    let (number, factor) = units.into_iter().find_map(number).expect("everything ends in nothing");
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = number.parse::<f64>().ok().filter(|_| is_plain).map(|number| number * factor);
    match seconds {
        Some(seconds) if seconds <= SECONDS_MAX => Ok(Duration::from_secs_f64(seconds)),
        Some(_) => Err("it must be no more than ten years".into()),
        None => Err(format!("{text:?} is no duration; write it like 500ms, 30s, 1.5m, 1h or 1d")),
    }
}

/// The same, of more than nothing.
pub(crate) fn parse_positive(text: &str) -> Result<Duration, String> {
    parse(text)
        .and_then(|time| if time.is_zero() { Err("it must be more than nothing".into()) } else { Ok(time) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let milliseconds = |text| parse(text).map(|time| time.as_millis());
        for (text, expected) in [
            ("0", 0),
            ("30", 30_000),
            ("1500ms", 1500),
            ("0.2", 200),
            ("2s", 2000),
            ("1.5m", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
        for text in ["", "s", ".", "-1", "1 s", "1w", "1e3", "NaN", "inf", "9999d", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_positive("0ms").is_err() && parse_positive("1ms").is_ok());
    }
}
