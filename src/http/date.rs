//! The date of an answer, as RFC 9110 section 5.6.7 wants it.

use std::cell::Cell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) type Date = [u8; 29];

const DAY: u64 = 24 * 60 * 60;

/// The date now. It is written down once a second for each thread that asks.
pub(super) fn now() -> Date {
    thread_local! {
        static LAST: Cell<(u64, Date)> = Cell::new((0, format(0)));
    }
    // A clock that is before 1970 is not set at all.
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (last, date) = LAST.get();
    if last == seconds {
        return date;
    }
    let date = format(seconds);
    LAST.set((seconds, date));
    date
}

/// The date so many seconds after the start of 1970.
fn format(seconds: u64) -> Date {
    let (days, second) = (seconds / DAY, seconds % DAY);
    // The first of January 1970 was a Thursday.
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let (day, month, year) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut date = [b' '; 29];
    // It fits unless the year has five digits, and then the rest is cut off.
    let _ = write!(&mut date[..], "{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT");
    date
}

/// Day of the month, month and year, so many days after the first of January 1970.
fn civil(mut days: u64) -> (u64, &'static str, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [
        ("Jan", 31),
        ("Feb", february),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
    ];
    for (month, length) in months {
        if days < length {
            return (days + 1, month, year);
        }
        days -= length;
    }
    (days + 1, "Dec", year)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_are_written_as_they_should() {
        for (seconds, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (DAY - 1, "Thu, 01 Jan 1970 23:59:59 GMT"),
            (68_169_599, "Mon, 28 Feb 1972 23:59:59 GMT"),
            (68_169_600, "Tue, 29 Feb 1972 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_230_767_999, "Wed, 31 Dec 2008 23:59:59 GMT"),
            (1_704_067_200, "Mon, 01 Jan 2024 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(String::from_utf8_lossy(&format(seconds)), date, "{seconds}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(0);
        for days in 1..60_000 {
            let (day, month, year) = civil(days);
            let (last, last_month, last_year) = before;
            let same_month = (day, month, year) == (last + 1, last_month, last_year);
            let next_month = day == 1 && month != last_month && last >= 28;
            let next_year = (month == "Jan") == (year == last_year + 1);
            assert!(same_month || (next_month && next_year), "{day} {month} {year}");
            before = (day, month, year);
        }
    }

    #[test]
    fn now_is_a_date_of_this_century() {
        let text = String::from_utf8(now().to_vec()).unwrap();
        assert!(text.contains(" 20") && text.ends_with(" GMT"), "{text}");
        assert_eq!(now().len(), 29);
    }
}
