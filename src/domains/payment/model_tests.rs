//! The state machine, pair by pair and in every order.

use super::{Alarm, OrderState, Ruling, Signal, Terms, rule};
use crate::domains::payment::id::Id;
use crate::domains::payment::money::{Currency, Money};

const SIGNALS: [Signal; 6] =
    [Signal::Placed, Signal::Processing, Signal::Succeeded, Signal::AttemptEnded, Signal::Mismatched, Signal::Cancel];

#[test]
fn p03_the_full_matrix_is_as_specified() {
    use OrderState as O;
    use Ruling::{Advance as Go, Keep, NoEffect as No, Wait};
    let review = Ruling::Alarm(Alarm::Mismatch, O::Review);
    let again = No("already_placed");
    let late = Ruling::Alarm(Alarm::Late, O::Closed);
    let twice = Ruling::Alarm(Alarm::Duplicate, O::Paid);
    let held = Ruling::Alarm(Alarm::UnderReview, O::Review);
    let (outranked, closed, reviewed) = (No("outranked"), No("order_closed"), No("order_under_review"));
    #[rustfmt::skip]
    let matrix = [
        // state      Placed          Processing            Succeeded    AttemptEnded  Mismatched  Cancel
        (O::Awaited, [Go(O::Created), Wait,                 Wait,        Wait,         Wait,       Wait]),
        (O::Created, [again,          Go(O::Paying),        Go(O::Paid), Keep,         review,     Go(O::Closed)]),
        (O::Paying,  [again,          No("already_paying"), Go(O::Paid), Keep,         review,     Go(O::Closed)]),
        (O::Paid,    [again,          outranked,            twice,       outranked,    review,     No("already_paid")]),
        (O::Closed,  [again,          closed,               late,        closed,       review,     No("already_closed")]),
        (O::Review,  [again,          reviewed,             held,        reviewed,     review,     reviewed]),
    ];
    assert_eq!(matrix.map(|(state, _)| state), OrderState::ALL);
    for (state, rulings) in matrix {
        for (signal, expected) in SIGNALS.into_iter().zip(rulings) {
            assert_eq!(rule(state, signal), expected, "{state:?} + {signal:?}");
        }
    }
}

#[test]
fn p03_an_order_never_moves_to_a_lower_rank() {
    for state in OrderState::ALL {
        for signal in SIGNALS {
            match rule(state, signal) {
                Ruling::Advance(to) => assert!(to.rank() > state.rank(), "{state:?} + {signal:?} -> {to:?}"),
                Ruling::Alarm(_, to) => assert!(to.rank() >= state.rank(), "{state:?} + {signal:?} -> {to:?}"),
                Ruling::Wait | Ruling::Keep | Ruling::NoEffect(_) => {}
            }
        }
    }
}

#[test]
fn a_paid_order_is_never_closed_and_a_closed_order_is_never_paid() {
    for signal in SIGNALS {
        assert_ne!(rule(OrderState::Paid, signal), Ruling::Advance(OrderState::Closed));
        assert_ne!(rule(OrderState::Closed, signal), Ruling::Advance(OrderState::Paid));
    }
}

/// Where an order ends, and how often it became PAID on the way.
fn walk(signals: &[Signal]) -> (OrderState, usize) {
    signals.iter().fold((OrderState::Created, 0), |(state, paid), signal| match rule(state, *signal) {
        Ruling::Advance(to) => (to, paid + usize::from(to == OrderState::Paid)),
        Ruling::Alarm(_, to) => (to, paid),
        Ruling::Wait | Ruling::Keep | Ruling::NoEffect(_) => (state, paid),
    })
}

fn permutations(signals: &[Signal]) -> Vec<Vec<Signal>> {
    if signals.is_empty() {
        return vec![vec![]];
    }
    (0..signals.len())
        .flat_map(|first| {
            let mut rest = signals.to_vec();
            let head = rest.remove(first);
            permutations(&rest).into_iter().map(move |tail| [vec![head], tail].concat())
        })
        .collect()
}

#[test]
fn p03_every_order_of_the_callbacks_of_a_payment_ends_paid_once() {
    let story = [Signal::Processing, Signal::AttemptEnded, Signal::Processing, Signal::Succeeded, Signal::AttemptEnded];
    for order in permutations(&story) {
        assert_eq!(walk(&order), (OrderState::Paid, 1), "{order:?}");
    }
}

#[test]
fn p03_every_order_with_a_cancel_ends_paid_or_closed_by_whichever_came_first() {
    let story = [Signal::Processing, Signal::Succeeded, Signal::AttemptEnded, Signal::Cancel];
    for order in permutations(&story) {
        let at = |wanted| order.iter().position(|signal| *signal == wanted).unwrap();
        let paid_first = at(Signal::Succeeded) < at(Signal::Cancel);
        let expected = if paid_first { (OrderState::Paid, 1) } else { (OrderState::Closed, 0) };
        assert_eq!(walk(&order), expected, "{order:?}");
    }
}

#[test]
fn p04_every_order_with_a_mismatch_ends_under_review() {
    let story = [Signal::Processing, Signal::Succeeded, Signal::Succeeded, Signal::Cancel, Signal::Mismatched];
    for order in permutations(&story) {
        let (end, paid) = walk(&order);
        assert_eq!(end, OrderState::Review, "{order:?}");
        assert!(paid <= 1, "{order:?}");
    }
}

#[test]
fn stored_names_of_states_are_read_back() {
    for state in OrderState::ALL {
        assert_eq!(OrderState::parse(state.as_str()), Some(state));
    }
    assert_eq!(OrderState::parse("REFUNDED"), None);
}

fn terms(merchant: &str, minor: i64, currency: &str) -> Terms {
    let total = Money::try_new(minor, Currency::try_new(currency).unwrap()).unwrap();
    Terms { merchant_id: Id::try_new(merchant).unwrap(), total }
}

#[test]
fn p04_every_contradiction_between_order_and_callback_is_named() {
    let asked = terms("m1", 12800, "CNY");
    let table: [(Terms, &[&str]); 6] = [
        (terms("m1", 12800, "CNY"), &[]),
        (terms("m2", 12800, "CNY"), &["merchant_mismatch"]),
        (terms("m1", 12800, "USD"), &["currency_mismatch"]),
        (terms("m1", 12799, "CNY"), &["amount_mismatch"]),
        (terms("m1", 128, "JPY"), &["currency_mismatch", "amount_mismatch"]),
        (terms("m2", 1, "USD"), &["merchant_mismatch", "currency_mismatch", "amount_mismatch"]),
    ];
    for (said, reasons) in table {
        assert_eq!(asked.contradictions(&said), reasons, "{said:?}");
    }
}
