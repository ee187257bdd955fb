//! Identifiers that other systems gave: bounded, printable text that can't be mixed up with each other.

use std::fmt;
use std::marker::PhantomData;

use crate::event::Rejection;

/// What an identifier names, and which texts may name it.
pub(crate) trait Kind {
    /// Its field in the payload.
    const FIELD: &'static str;
    /// Code of the rejection.
    const CODE: &'static str;
    /// Longest text, in characters. Keys of several identifiers must stay far below an index row's 2,700 bytes.
    const MAX_CHARS: usize;
    /// The rule of [`accepts`](Self::accepts), for people.
    const ALPHABET: &'static str = "printable characters";

    /// Whether a character may stand in it.
    fn accepts(c: char) -> bool {
        !c.is_control()
    }
}

/// An identifier of one [`Kind`]: not empty, not too long, no space at its ends, no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id<K> {
    text: String,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Id<K> {
    /// Accepts a text that keeps the kind's rules.
    ///
    /// # Errors
    /// Names the field, the rule and what to do.
    pub(crate) fn try_new(text: impl Into<String>) -> Result<Self, Rejection> {
        let text = text.into();
        let (field, max) = (K::FIELD, K::MAX_CHARS);
        let broken = if text.is_empty() {
            format!("{field} is empty; send the identifier as the producing system knows it")
        } else if text.chars().count() > max {
            format!("{field} is longer than {max} characters; send a shorter identifier")
        } else if text.trim() != text {
            format!("{field} begins or ends with white space; trim it")
        } else if !text.chars().all(K::accepts) {
            format!("{field} holds a character that is not allowed; send only {}", K::ALPHABET)
        } else {
            return Ok(Self { text, kind: PhantomData });
        };
        Err(Rejection::invalid(K::CODE, broken))
    }
}

impl<K> Id<K> {
    /// The text as it was sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// The shop's number of an order.
pub(crate) type OrderNo = Id<Order>;
/// The account that receives the money.
pub(crate) type MerchantId = Id<Merchant>;
/// What is sold.
pub(crate) type Sku = Id<Article>;
/// Who takes the money.
pub(crate) type Provider = Id<PaymentProvider>;
/// The provider's id of a notification.
pub(crate) type NotifyId = Id<Notification>;
/// The provider's id of a transaction.
pub(crate) type TransactionId = Id<Transaction>;

/// Kind of [`OrderNo`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Order;
/// Kind of [`MerchantId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Merchant;
/// Kind of [`Sku`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Article;
/// Kind of [`Provider`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PaymentProvider;
/// Kind of [`NotifyId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Notification;
/// Kind of [`TransactionId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Transaction;

impl Kind for Order {
    const FIELD: &'static str = "orderNo";
    const CODE: &'static str = "invalid_order_no";
    const MAX_CHARS: usize = 64;
}

impl Kind for Merchant {
    const FIELD: &'static str = "merchantId";
    const CODE: &'static str = "invalid_merchant_id";
    const MAX_CHARS: usize = 64;
}

impl Kind for Article {
    const FIELD: &'static str = "sku";
    const CODE: &'static str = "invalid_sku";
    const MAX_CHARS: usize = 64;
}

impl Kind for PaymentProvider {
    const FIELD: &'static str = "provider";
    const CODE: &'static str = "invalid_provider";
    const MAX_CHARS: usize = 32;
    const ALPHABET: &'static str = "lower-case letters, digits and underscores, e.g. wechat";

    // No slash: a payment is named <provider>/<transaction id>.
    fn accepts(c: char) -> bool {
        matches!(c, 'a'..='z' | '0'..='9' | '_')
    }
}

impl Kind for Notification {
    const FIELD: &'static str = "notifyId";
    const CODE: &'static str = "invalid_notify_id";
    const MAX_CHARS: usize = 128;
}

impl Kind for Transaction {
    const FIELD: &'static str = "transactionId";
    const CODE: &'static str = "invalid_transaction_id";
    const MAX_CHARS: usize = 128;
}

#[cfg(test)]
mod tests {
    use super::{NotifyId, OrderNo, Provider};

    #[test]
    fn an_identifier_is_bounded_printable_and_trimmed() {
        assert!(OrderNo::try_new("SO-1").is_ok());
        assert!(OrderNo::try_new("订单-1").is_ok());
        assert!(OrderNo::try_new("x".repeat(64)).is_ok());
        for bad in ["", " ", " SO-1", "SO-1 ", "SO\u{0}1", "SO\n1", &"x".repeat(65)] {
            let rejection = OrderNo::try_new(bad).unwrap_err();
            assert_eq!(rejection.code, "invalid_order_no", "{bad:?}");
            assert!(rejection.message.starts_with("orderNo "), "{}", rejection.message);
        }
    }

    #[test]
    fn a_provider_is_a_lower_case_token() {
        assert!(Provider::try_new("we_chat2").is_ok());
        for bad in ["WeChat", "we chat", "we/chat", "微信"] {
            assert_eq!(Provider::try_new(bad).unwrap_err().code, "invalid_provider");
        }
    }

    #[test]
    fn each_kind_names_its_own_field() {
        assert!(NotifyId::try_new("").unwrap_err().message.contains("notifyId"));
    }
}
