//! Resource quantities: `100m`, `128Mi`, `1.5`, `2e3`, exactly as apimachinery's `resource.Quantity`.
//!
//! In: strings of a manifest. Out: exact numbers (in billionths) and their canonical form.
//! Does not know what the numbers measure (`resources`).
//!
//! Two rules of the API that surprise: digits below a billionth round *away* from zero ("if you want some
//! resources, you should get some"), and a magnitude above 2^63-1 is capped.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// The API's cap, 2^63-1, in billionths.
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;
/// Longer strings are refused before they are looked at: the largest number worth writing has 19 digits.
const MAX_LENGTH: usize = 128;

/// An exact decimal number with at most nine places, and the notation it was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

/// Which family of suffixes a quantity uses when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// `m`, `k`, `M`, `G` ...: powers of ten.
    DecimalSi,
    /// `Ki`, `Mi`, `Gi` ...: powers of 1024.
    BinarySi,
    /// `e3`, `E-6`.
    DecimalExponent,
}

/// Why a string is not a quantity; worded as the API server words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number followed by a suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (got {value:?})"
    )]
    Format {
        /// What was written.
        value: String,
    },
    /// The part behind the digits is no known suffix.
    #[error("unable to parse quantity's suffix (got {value:?})")]
    Suffix {
        /// What was written.
        value: String,
    },
}

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self { nanos: 0, notation: Notation::DecimalSi };

    /// A whole number, written in powers of 1024 as byte counts are.
    #[must_use]
    pub const fn from_bytes(bytes: i64) -> Self {
        Self { nanos: bytes as i128 * NANO, notation: Notation::BinarySi }
    }

    /// A number of thousandths, as CPU is counted.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * 1_000_000, notation: Notation::DecimalSi }
    }

    /// Reads a typed API field.
    ///
    /// # Errors
    /// [`QuantityError`] when the string is not a quantity.
    pub fn from_api(quantity: &ApiQuantity) -> Result<Self, QuantityError> {
        quantity.0.parse()
    }

    /// The number rounded up to a whole (`Value()` of apimachinery).
    #[must_use]
    pub fn value(self) -> i64 {
        saturate(ceil_div(self.nanos, NANO))
    }

    /// Thousandths, rounded up (`MilliValue()`); saturates.
    #[must_use]
    pub fn milli_value(self) -> i64 {
        saturate(ceil_div(self.nanos, 1_000_000))
    }

    /// Whether it is zero, whatever its notation.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it has a part below one.
    #[must_use]
    pub const fn is_fractional(self) -> bool {
        self.nanos % NANO != 0
    }

    /// Compares numbers and ignores notation (`Cmp`).
    #[must_use]
    pub fn compare(self, other: Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }

    /// Sum, capped as every quantity is; keeps the notation of `self` unless that is zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let notation = if self.is_zero() { other.notation } else { self.notation };
        Self { nanos: cap(self.nanos.saturating_add(other.nanos)), notation }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, QuantityError> {
        let format = || QuantityError::Format { value: s.chars().take(MAX_LENGTH).collect() };
        let (negative, unsigned) = match s.as_bytes().first() {
            None => return Err(format()),
            Some(b'-') => (true, &s[1..]),
            Some(b'+') => (false, &s[1..]),
            Some(_) => (false, s),
        };
        if s.len() > MAX_LENGTH {
            return Err(format());
        }
        let whole_end = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
        let (whole, rest) = unsigned.split_at(whole_end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            None => ("", rest),
            Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(format());
        }
        let (scale, notation) = interpret_suffix(suffix).ok_or_else(|| {
            let shaped = suffix.chars().all(|c| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit());
            if shaped { QuantityError::Suffix { value: s.to_owned() } } else { format() }
        })?;
        let magnitude = scaled_nanos(whole, fraction, scale);
        // Below one and not zero, powers of 1024 say nothing: apimachinery writes such numbers in decimal.
        let notation = match notation {
            Notation::BinarySi if magnitude > 0 && magnitude < NANO => Notation::DecimalSi,
            other => other,
        };
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, notation })
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, no lost precision, the largest suffix possible.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary_fits = self.nanos % NANO == 0 && self.nanos.abs() >= 1024 * NANO;
        if self.notation == Notation::BinarySi && binary_fits {
            return write_binary(self.nanos / NANO, f);
        }
        let mut mantissa = self.nanos;
        let mut exponent = -9;
        while mantissa % 1000 == 0 && (exponent < 18 || self.notation == Notation::DecimalExponent) {
            mantissa /= 1000;
            exponent += 3;
        }
        if self.notation == Notation::DecimalExponent {
            return if exponent == 0 { write!(f, "{mantissa}") } else { write!(f, "{mantissa}e{exponent}") };
        }
        let suffix = DECIMAL_SUFFIXES.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        write!(f, "{mantissa}{suffix}")
    }
}

impl From<Quantity> for ApiQuantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

/// How a suffix scales the digits before it.
enum Scale {
    Ten(i32),
    Two(u32),
}

const DECIMAL_SUFFIXES: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY_SUFFIXES: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

fn interpret_suffix(suffix: &str) -> Option<(Scale, Notation)> {
    if let Some((_, exponent)) = DECIMAL_SUFFIXES.iter().find(|(s, _)| *s == suffix) {
        return Some((Scale::Ten(*exponent), Notation::DecimalSi));
    }
    if let Some((_, shift)) = BINARY_SUFFIXES.iter().find(|(s, _)| *s == suffix) {
        return Some((Scale::Two(*shift), Notation::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Past these bounds the number is zero-rounded-up or capped whatever the digits are.
    let exponent = exponent.parse::<i64>().unwrap_or(if exponent.starts_with('-') { i64::MIN } else { i64::MAX });
    Some((Scale::Ten(exponent.clamp(-1000, 1000) as i32), Notation::DecimalExponent))
}

/// The digits times the scale, in billionths: capped above, rounded up below.
///
/// Works on decimal digits, so nothing is lost however long the string (at most [`MAX_LENGTH`]) is.
fn scaled_nanos(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    let ten = match scale {
        Scale::Ten(exponent) => exponent,
        Scale::Two(shift) => {
            for _ in 0..shift / 10 {
                multiply_by_1024(&mut digits);
            }
            0
        }
    };
    // value = digits * 10^(ten - places), wanted in units of 10^-9.
    let mut power = ten - fraction.len() as i32 + 9;
    let kept = digits.len().saturating_sub(power.min(0).unsigned_abs() as usize);
    let lost = digits[kept..].iter().any(|digit| *digit != 0);
    let mut number = digits[..kept].iter().fold(0i128, |n, digit| cap(n.saturating_mul(10) + i128::from(*digit)));
    while power > 0 && number != 0 && number < MAX_NANOS {
        number = cap(number.saturating_mul(10));
        power -= 1;
    }
    cap(number + i128::from(lost))
}

/// Multiplies a big-endian decimal number.
fn multiply_by_1024(digits: &mut Vec<u8>) {
    let mut carry = 0u32;
    for digit in digits.iter_mut().rev() {
        let product = u32::from(*digit) * 1024 + carry;
        *digit = (product % 10) as u8;
        carry = product / 10;
    }
    while carry > 0 {
        digits.insert(0, (carry % 10) as u8);
        carry /= 10;
    }
}

fn write_binary(value: i128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut mantissa = value;
    let mut suffix = "";
    for (name, _) in BINARY_SUFFIXES {
        if mantissa % 1024 != 0 {
            break;
        }
        mantissa /= 1024;
        suffix = name;
    }
    write!(f, "{mantissa}{suffix}")
}

const fn ceil_div(number: i128, divisor: i128) -> i128 {
    let quotient = number / divisor;
    if number % divisor > 0 { quotient + 1 } else { quotient }
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

fn cap(nanos: i128) -> i128 {
    nanos.clamp(-MAX_NANOS, MAX_NANOS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read_and_written_in_canonical_form() {
        for (text, canonical, value, millis) in [
            ("0", "0", 0, 0),
            ("0Mi", "0", 0, 0),
            ("100m", "100m", 1, 100),
            ("1.5", "1500m", 2, 1500),
            ("1.5Gi", "1536Mi", 1_610_612_736, 1_610_612_736_000),
            ("1000", "1k", 1000, 1_000_000),
            ("1024", "1024", 1024, 1_024_000),
            ("1Ki", "1Ki", 1024, 1_024_000),
            ("0.5Ki", "512", 512, 512_000),
            ("1e3", "1e3", 1000, 1_000_000),
            ("12E-3", "12e-3", 1, 12),
            ("1E", "1E", 1_000_000_000_000_000_000, i64::MAX),
            (".5", "500m", 1, 500),
            ("5.", "5", 5, 5000),
            ("+7", "7", 7, 7000),
            ("-1.5", "-1500m", -1, -1500),
            ("0.1n", "1n", 1, 1),
            ("100Ei", "9223372036854775807", i64::MAX, i64::MAX),
            ("10Mi", "10Mi", 10_485_760, 10_485_760_000),
            ("128974848", "128974848", 128_974_848, 128_974_848_000),
        ] {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!(quantity.value(), value, "value of {text}");
            assert_eq!(quantity.milli_value(), millis, "thousandths of {text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused_in_the_words_of_the_api() {
        for (text, message) in [
            ("", "quantities must match the regular expression"),
            ("ten", "quantities must match the regular expression"),
            ("1.2.3", "quantities must match the regular expression"),
            ("1 Gi", "quantities must match the regular expression"),
            ("1Kii", "unable to parse quantity's suffix"),
            ("1mi", "unable to parse quantity's suffix"),
            ("1e", "unable to parse quantity's suffix"),
            ("--1", "quantities must match the regular expression"),
        ] {
            let error = text.parse::<Quantity>().unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_means_the_same_number(
            whole in 0u64..=u64::MAX >> 1, fraction in "[0-9]{0,9}", suffix in "(|m|k|M|Ki|Mi|Gi|e3|e-3)",
        ) {
            let quantity: Quantity = format!("{whole}.{fraction}{suffix}").parse().unwrap();
            let again: Quantity = quantity.to_string().parse().unwrap();
            prop_assert_eq!(quantity.compare(again), std::cmp::Ordering::Equal);
            prop_assert_eq!(again.to_string(), quantity.to_string());
        }

        #[test]
        fn no_string_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn no_shaped_string_panics(text in "[+-]?[0-9.]{0,60}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,25}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let _ = (quantity.to_string(), quantity.value(), quantity.milli_value());
            }
        }
    }
}
