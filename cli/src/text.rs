//! Text for people: what could upset a terminal is escaped, sizes and spans have units, and moments are in UTC.

use std::fmt::Write as _;
use std::time::SystemTime;

/// `text` with control characters escaped: names come from anywhere, and a terminal obeys what it is shown.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// `count` and its noun, in the plural unless it is one.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    match (count, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "directory") => format!("{count} directories"),
        _ => format!("{count} {noun}s"),
    }
}

/// A length in bytes, with three digits that count: `512 B`, `1.50 KiB`, `16 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit_bytes = |unit: usize| 1_u128 << (10 * (unit + 1));
    let hundredths = |unit: usize| (u128::from(bytes) * 100 + unit_bytes(unit) / 2) / unit_bytes(unit);
    // The unit in which it is at least 1, unless rounding would show it as 1024.
    let mut unit = bytes.ilog2() as usize / 10 - 1;
    if hundredths(unit) >= 102_350 && unit + 1 < UNITS.len() {
        unit += 1;
    }
    let (name, is_whole) = (UNITS[unit], u128::from(bytes).is_multiple_of(unit_bytes(unit)));
    match hundredths(unit) {
        value if is_whole => format!("{} {name}", value / 100),
        value @ ..1000 => format!("{}.{:02} {name}", value / 100, value % 100),
        value @ 1000..9995 => format!("{}.{} {name}", (value + 5) / 100, (value + 5) / 10 % 10),
        value => format!("{} {name}", (value + 50) / 100),
    }
}

/// How long something took.
pub(crate) fn span_of_ms(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

/// A moment for people, to the second: `2026-01-31 12:00:00`, in UTC.
pub(crate) fn moment(time_ns: i64) -> String {
    utc(time_ns)[..19].replace('T', " ")
}

/// How long ago a moment is, roughly.
pub(crate) fn ago(time_ns: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    age((now.as_nanos() as i64).saturating_sub(time_ns) / 1_000_000_000)
}

fn age(seconds: i64) -> String {
    match seconds {
        ..1 => "just now".to_owned(),
        1..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A moment, given in nanoseconds since the Unix epoch, as `2026-01-31T12:00:00.123Z`.
pub(crate) fn utc(time_ns: i64) -> String {
    let ms = time_ns.div_euclid(1_000_000);
    let (days, ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{ms:03}Z")
}

/// The moment that [`utc`] prints so, with or without its fraction of a second, and with a blank for the `T`.
pub(crate) fn parse_utc(text: &str) -> Option<i64> {
    let (whole, fraction) = match text.strip_suffix('Z')?.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (text.strip_suffix('Z')?, ""),
    };
    let (date, time) = whole.split_once(['T', ' '])?;
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let is_number =
            |part: &&str| !part.is_empty() && part.len() <= 4 && part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<i64> = text.split(by).filter(is_number).map_while(|part| part.parse().ok()).collect();
        (text.split(by).count() == 3).then(|| parts.try_into().ok())?
    };
    let ([year, month, day], [hours, minutes, seconds]) = (numbers(date, '-')?, numbers(time, ':')?);
    let is_fraction = fraction.len() <= 9 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    if !is_fraction || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    // The day that prints like this: some day of that year or the ones around it.
    let first = (year - 1970) * 365 + (year - 1969).div_euclid(4) - 400;
    let days = (first..first + 1200).find(|days| civil(*days) == (year, month, day))?;
    let seconds = days * 86_400 + hours * 3600 + minutes * 60 + seconds;
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Year, month and day of a day counted from the Unix epoch. Years are counted from March, so that a leap day is the
/// last of its year, and in eras of 400 years, which all have the same length.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_OF_ERA: i64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(DAYS_OF_ERA), days.rem_euclid(DAYS_OF_ERA));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (DAYS_OF_ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_agree_with_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000), expected);
        }
        for seconds in [0, 951_782_400, 1_709_251_199, 4_107_542_400] {
            let nanoseconds = seconds * 1_000_000_000 + 123_456_789;
            let text = utc(nanoseconds);
            assert_eq!(parse_utc(&text), Some(nanoseconds - nanoseconds % 1_000_000), "{text}");
        }
        assert_eq!(parse_utc("2000-02-29 00:00:00Z"), Some(951_782_400_000_000_000));
        for bad in
            ["", "Z", "2000-02-30T00:00:00Z", "2000-02-29T24:00:00Z", "2000-02-29T00:00:00", "1-2T3:4:5Z"]
        {
            assert_eq!(parse_utc(bad), None, "{bad}");
        }
        assert_eq!(utc(1_999_999), "1970-01-01T00:00:00.001Z");
        for extreme in [i64::MIN, i64::MAX] {
            assert_eq!(utc(extreme).len(), 24);
        }
    }

    #[test]
    fn sizes_and_spans_are_short() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (10_234, "9.99 KiB"),
            (10_240, "10 KiB"),
            (123_456, "121 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (16 << 20, "16 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
        assert_eq!((span_of_ms(0.41), span_of_ms(1234.5)), ("0.41 ms".into(), "1.2 s".into()));
        let ages = [-5, 0, 119, 120, 7199, 7200, 172_799, 172_800].map(age);
        let expected = [
            "just now",
            "just now",
            "119 s ago",
            "2 min ago",
            "119 min ago",
            "2 h ago",
            "47 h ago",
            "2 days ago",
        ];
        assert_eq!(ages, expected);
        assert_eq!(moment(951_782_400_000_000_000), "2000-02-29 00:00:00");
        // An extreme moment must not panic.
        assert!(!ago(i64::MIN).is_empty() && !ago(i64::MAX).is_empty());
    }

    #[test]
    fn terminals_are_not_told_what_to_do() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}c gr\u{fc}n"), "a\\u{1b}[2Jb\\n\\u{9b}c gr\u{fc}n");
    }
}
