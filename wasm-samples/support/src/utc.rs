//! Dates in UTC without a time zone database. In: seconds since 1970. Out: the three spellings guests print.
//! Knows no leap seconds and no dates before 1970, as Unix time has none of either.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
// 1970-01-01 was a Thursday.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// A moment, broken into its calendar fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc {
    year: u64,
    month: u64,
    day: u64,
    weekday: usize,
    second_of_day: u64,
}

impl Utc {
    /// Now, by the wall clock.
    #[must_use]
    pub fn now() -> Self {
        Self::of(SystemTime::now())
    }

    /// The fields of `time`; anything before 1970 counts as 1970.
    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        Self::from_unix(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// The fields of a Unix time in seconds.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // Howard Hinnant's civil_from_days, for days since 1970: years start in March, eras have 400 years.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * march_month + 2) / 5 + 1,
            weekday: (days % 7) as usize,
            second_of_day: seconds % 86_400,
        }
    }

    /// `2026-01-02 03:04:05 UTC`.
    #[must_use]
    pub fn plain(&self) -> String {
        format!("{:04}-{:02}-{:02} {} UTC", self.year, self.month, self.day, self.clock())
    }

    /// `Fri, 02 Jan 2026 03:04:05 GMT`, as HTTP's Date header (RFC 9110, 5.6.7).
    #[must_use]
    pub fn http(&self) -> String {
        let (weekday, month) = (WEEKDAYS[self.weekday], self.month_name());
        format!("{weekday}, {:02} {month} {:04} {} GMT", self.day, self.year, self.clock())
    }

    /// `02/Jan/2026:03:04:05 +0000`, as web servers' access logs.
    #[must_use]
    pub fn access_log(&self) -> String {
        format!("{:02}/{}/{:04}:{} +0000", self.day, self.month_name(), self.year, self.clock())
    }

    fn month_name(&self) -> &'static str {
        MONTHS[(self.month - 1) as usize]
    }

    fn clock(&self) -> String {
        let second = self.second_of_day;
        format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::Utc;

    #[test]
    fn dates_follow_the_calendar() {
        for (case, seconds, expected) in [
            ("the epoch", 0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("RFC 9110's example", 784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("a leap day", 951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            ("the day after a leap year's end", 1_735_689_600, "Wed, 01 Jan 2025 00:00:00 GMT"),
        ] {
            assert_eq!(Utc::from_unix(seconds).http(), expected, "{case}");
        }
    }
}
