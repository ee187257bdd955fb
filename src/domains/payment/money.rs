//! Money: whole minor units of one currency. Never a float, never an unchecked sum.

use std::fmt;

/// An ISO 4217 code: three capital letters. Whether the code is assigned is for the merchant's contract to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Currency([u8; 3]);

impl Currency {
    /// Accepts three capital ASCII letters.
    pub(crate) fn try_new(code: &str) -> Option<Self> {
        let letters: [u8; 3] = code.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| fmt::Write::write_char(f, char::from(*letter)))
    }
}

/// An amount that is not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Money {
    minor: i64,
    currency: Currency,
}

impl Money {
    /// Accepts zero and more.
    pub(crate) fn try_new(minor: i64, currency: Currency) -> Option<Self> {
        (minor >= 0).then_some(Self { minor, currency })
    }

    /// Nothing, as the start of a sum.
    pub(crate) fn zero(currency: Currency) -> Self {
        Self { minor: 0, currency }
    }

    /// The amount in minor units.
    pub(crate) fn minor(self) -> i64 {
        self.minor
    }

    /// The currency.
    pub(crate) fn currency(self) -> Currency {
        self.currency
    }

    /// The sum; `None` where the currencies differ or the sum doesn't fit.
    pub(crate) fn checked_add(self, other: Self) -> Option<Self> {
        if self.currency != other.currency {
            return None;
        }
        Self::try_new(self.minor.checked_add(other.minor)?, self.currency)
    }

    /// The price of so many; `None` where it is negative or doesn't fit.
    pub(crate) fn checked_times(self, quantity: i64) -> Option<Self> {
        Self::try_new(self.minor.checked_mul(quantity)?, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::{Currency, Money};

    fn cny(minor: i64) -> Money {
        Money::try_new(minor, Currency::try_new("CNY").unwrap()).unwrap()
    }

    #[test]
    fn a_currency_is_three_capital_letters() {
        assert_eq!(Currency::try_new("CNY").unwrap().to_string(), "CNY");
        for bad in ["", "CN", "CNYX", "cny", "C1Y", "元元元", "元"] {
            assert_eq!(Currency::try_new(bad), None, "{bad}");
        }
    }

    #[test]
    fn money_is_never_negative_and_never_overflows() {
        assert_eq!(Money::try_new(-1, Currency::try_new("CNY").unwrap()), None);
        assert_eq!(cny(i64::MAX).checked_add(cny(1)), None);
        assert_eq!(cny(i64::MAX / 2 + 1).checked_times(2), None);
        assert_eq!(cny(5).checked_times(-1), None);
        assert_eq!(cny(4950).checked_times(2).unwrap().checked_add(cny(2900)), Some(cny(12800)));
    }

    #[test]
    fn currencies_do_not_mix() {
        let usd = Money::zero(Currency::try_new("USD").unwrap());
        assert_eq!(cny(1).checked_add(usd), None);
    }
}
