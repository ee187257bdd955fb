//! All SQL of `payment_order`, `payment_order_line` and `payment`.
//!
//! **Lock protocol.** A transaction first makes sure that the row of every order it deals with exists (`ENSURE_ORDERS`), then
//! locks those rows (`LOCK_ORDERS`), both in key order. Only then does it read or write anything of these orders.
//!
//! - *No orphan is missed.* An order's placing and a callback for it both hold the same row until they commit. Whoever
//!   comes second waits; its later statements take a new snapshot (READ COMMITTED) and see what the first one wrote.
//!   That the order may not have been placed yet doesn't matter: the row stands for the number, not for the order.
//! - *No deadlock.* Waits in `ENSURE_ORDERS` are for rows that another transaction inserted but didn't commit; it inserted
//!   them in the same key order. A transaction that got to `LOCK_ORDERS` sees all its rows committed or inserted them itself,
//!   so it waits only for others in `LOCK_ORDERS`, in key order too. The one exception is a provider that uses a
//!   notification or transaction id for two orders at once; the server then ends one of the two (40P01), which is tried again.

use tokio_postgres::Row;
use tokio_postgres::types::FromSqlOwned;

use super::event::{Callback, Line, PlacedOrder, Status};
use super::id::{Id, Kind};
use super::model::{OrderState, Terms};
use super::money::{Currency, Money};
use super::verdict::Verdict;
use crate::db::{DbError, Tx};

const ENSURE_ORDERS: &str = "
    insert into onceflow.payment_order (tenant, order_no)
    select distinct k.tenant, k.order_no
      from unnest($1::text[], $2::text[]) as k (tenant, order_no)
     order by k.tenant, k.order_no
    on conflict (tenant, order_no) do nothing";

const LOCK_ORDERS: &str = "
    select o.tenant, o.order_no, o.state, o.merchant_id, o.currency, o.total, o.cancel_reason, o.version
      from onceflow.payment_order o
     where (o.tenant, o.order_no) in (select k.tenant, k.order_no
                                        from unnest($1::text[], $2::text[]) as k (tenant, order_no))
     order by o.tenant, o.order_no
       for update of o";

const PLACE_ORDER: &str = "
    update onceflow.payment_order
       set state = $3, merchant_id = $4, currency = $5, total = $6, cancel_reason = null,
           version = version + 1, changed_at = clock_timestamp()
     where tenant = $1 and order_no = $2
    returning version";

const INSERT_LINES: &str = "
    insert into onceflow.payment_order_line (tenant, order_no, line_no, sku, quantity, unit_price)
    select $1, $2, l.ordinality - 1, l.sku, l.quantity, l.unit_price
      from unnest($3::text[], $4::bigint[], $5::bigint[]) with ordinality as l (sku, quantity, unit_price, ordinality)";

const SELECT_LINES: &str = "
    select sku, quantity, unit_price
      from onceflow.payment_order_line
     where tenant = $1 and order_no = $2
     order by line_no";

const MOVE_ORDER: &str = "
    update onceflow.payment_order
       set state = $3, version = version + 1, changed_at = clock_timestamp()
     where tenant = $1 and order_no = $2
    returning version";

const CLOSE_ORDER: &str = "
    update onceflow.payment_order
       set state = $3, cancel_reason = $4, version = version + 1, changed_at = clock_timestamp()
     where tenant = $1 and order_no = $2
    returning version";

const HOLD_CANCEL: &str = "
    update onceflow.payment_order
       set cancel_reason = $3, changed_at = clock_timestamp()
     where tenant = $1 and order_no = $2";

/// Does nothing on either conflict: the notification id, or transaction and status.
const INSERT_PAYMENT: &str = "
    insert into onceflow.payment (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency,
                                  amount, paid_at, disposition, reasons)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    on conflict do nothing";

const SELECT_RECORDED: &str = "
    select provider, transaction_id, status, notify_id, order_no, merchant_id, currency, amount, paid_at
      from onceflow.payment
     where tenant = $1 and provider = $2 and (notify_id = $3 or (transaction_id = $4 and status = $5))";

const SELECT_ORPHANS: &str = "
    select provider, transaction_id, status, notify_id, order_no, merchant_id, currency, amount, paid_at
      from onceflow.payment
     where tenant = $1 and order_no = $2 and disposition = 'orphan'
     order by seq";

const COUNT_ORPHANS: &str = "
    select count(*)
      from onceflow.payment
     where tenant = $1 and order_no = $2 and disposition = 'orphan'";

const SETTLE_ORPHAN: &str = "
    update onceflow.payment
       set disposition = $5, reasons = $6
     where tenant = $1 and provider = $2 and transaction_id = $3 and status = $4";

/// An order whose row this transaction has locked.
#[derive(Debug)]
pub(super) struct Order {
    /// Whose it is.
    pub(super) tenant: String,
    /// Its number.
    pub(super) order_no: String,
    /// Where it stands.
    pub(super) state: OrderState,
    /// What it asks for; none while it is awaited.
    pub(super) terms: Option<Terms>,
    /// Reason of the cancel request that waits for it or closed it.
    pub(super) cancel_reason: Option<String>,
    /// Rises with every change of state.
    pub(super) version: i64,
}

/// Locks the rows of these orders, in key order, making them first where nothing was heard of them yet.
pub(super) async fn lock_orders(tx: &Tx, tenants: &[&str], order_nos: &[&str]) -> Result<Vec<Order>, DbError> {
    tx.execute(ENSURE_ORDERS, &[&tenants, &order_nos]).await?;
    let rows = tx.query(LOCK_ORDERS, &[&tenants, &order_nos]).await?;
    rows.iter().map(order).collect()
}

/// Fills the awaited row with the order's terms and writes its lines.
pub(super) async fn place(tx: &Tx, order: &mut Order, placed: &PlacedOrder) -> Result<(), DbError> {
    let (state, total) = (OrderState::Created, placed.terms.total);
    let row = tx
        .query_one(
            PLACE_ORDER,
            &[
                &order.tenant,
                &order.order_no,
                &state.as_str(),
                &placed.terms.merchant_id.as_str(),
                &total.currency().to_string(),
                &total.minor(),
            ],
        )
        .await?;
    let skus: Vec<&str> = placed.lines.iter().map(|line| line.sku.as_str()).collect();
    let quantities: Vec<i64> = placed.lines.iter().map(|line| line.quantity).collect();
    let prices: Vec<i64> = placed.lines.iter().map(|line| line.unit_price.minor()).collect();
    tx.execute(INSERT_LINES, &[&order.tenant, &order.order_no, &skus, &quantities, &prices]).await?;
    order.state = state;
    order.terms = Some(placed.terms.clone());
    order.cancel_reason = None;
    order.version = column(&row, "version")?;
    Ok(())
}

/// The lines of a placed order.
pub(super) async fn lines(tx: &Tx, order: &Order, currency: Currency) -> Result<Vec<Line>, DbError> {
    let rows = tx.query(SELECT_LINES, &[&order.tenant, &order.order_no]).await?;
    rows.iter()
        .map(|row| {
            Ok(Line {
                sku: id(row, "sku")?,
                quantity: column(row, "quantity")?,
                unit_price: money(column(row, "unit_price")?, currency)?,
            })
        })
        .collect()
}

/// Moves the order to another state.
pub(super) async fn move_order(tx: &Tx, order: &mut Order, to: OrderState) -> Result<(), DbError> {
    let row = tx.query_one(MOVE_ORDER, &[&order.tenant, &order.order_no, &to.as_str()]).await?;
    order.state = to;
    order.version = column(&row, "version")?;
    Ok(())
}

/// Closes the order and keeps why.
pub(super) async fn close_order(tx: &Tx, order: &mut Order, reason: &str) -> Result<(), DbError> {
    let to = OrderState::Closed;
    let row = tx.query_one(CLOSE_ORDER, &[&order.tenant, &order.order_no, &to.as_str(), &reason]).await?;
    order.state = to;
    order.cancel_reason = Some(reason.to_owned());
    order.version = column(&row, "version")?;
    Ok(())
}

/// Keeps a cancel request until its order is placed.
pub(super) async fn hold_cancel(tx: &Tx, order: &mut Order, reason: &str) -> Result<(), DbError> {
    tx.execute(HOLD_CANCEL, &[&order.tenant, &order.order_no, &reason]).await?;
    order.cancel_reason = Some(reason.to_owned());
    Ok(())
}

/// Records a callback; false where its notification, or its transaction with this status, was recorded before.
pub(super) async fn record(tx: &Tx, tenant: &str, callback: &Callback, verdict: &Verdict) -> Result<bool, DbError> {
    let said = &callback.said;
    let inserted = tx
        .execute(
            INSERT_PAYMENT,
            &[
                &tenant,
                &callback.provider.as_str(),
                &callback.transaction_id.as_str(),
                &callback.status.as_str(),
                &callback.notify_id.as_str(),
                &callback.order_no.as_str(),
                &said.merchant_id.as_str(),
                &said.total.currency().to_string(),
                &said.total.minor(),
                &callback.paid_at,
                &verdict.disposition.as_str(),
                &verdict.reasons,
            ],
        )
        .await?;
    Ok(inserted == 1)
}

/// What was recorded under the callback's notification id, or its transaction and status: at most two rows.
pub(super) async fn recorded(tx: &Tx, tenant: &str, callback: &Callback) -> Result<Vec<Callback>, DbError> {
    let key = (callback.provider.as_str(), callback.notify_id.as_str(), callback.transaction_id.as_str());
    let rows = tx.query(SELECT_RECORDED, &[&tenant, &key.0, &key.1, &key.2, &callback.status.as_str()]).await?;
    rows.iter().map(read_callback).collect()
}

/// The callbacks that wait for this order, in order of arrival.
pub(super) async fn orphans(tx: &Tx, order: &Order) -> Result<Vec<Callback>, DbError> {
    let rows = tx.query(SELECT_ORPHANS, &[&order.tenant, &order.order_no]).await?;
    rows.iter().map(read_callback).collect()
}

/// How many callbacks wait for this order.
pub(super) async fn count_orphans(tx: &Tx, order: &Order) -> Result<i64, DbError> {
    let row = tx.query_one(COUNT_ORPHANS, &[&order.tenant, &order.order_no]).await?;
    column(&row, "count")
}

/// Writes down what became of an orphan once its order was there.
pub(super) async fn settle_orphan(tx: &Tx, tenant: &str, orphan: &Callback, verdict: &Verdict) -> Result<(), DbError> {
    let (provider, transaction_id) = (orphan.provider.as_str(), orphan.transaction_id.as_str());
    let (disposition, reasons) = (verdict.disposition.as_str(), &verdict.reasons);
    tx.execute(SETTLE_ORPHAN, &[&tenant, &provider, &transaction_id, &orphan.status.as_str(), &disposition, reasons])
        .await?;
    Ok(())
}

fn order(row: &Row) -> Result<Order, DbError> {
    let state: String = column(row, "state")?;
    let state = OrderState::parse(&state).ok_or_else(|| DbError::shape(format!("order state {state:?}")))?;
    let terms = if state == OrderState::Awaited { None } else { Some(terms(row, "total")?) };
    Ok(Order {
        tenant: column(row, "tenant")?,
        order_no: column(row, "order_no")?,
        state,
        terms,
        cancel_reason: column(row, "cancel_reason")?,
        version: column(row, "version")?,
    })
}

fn read_callback(row: &Row) -> Result<Callback, DbError> {
    let status: String = column(row, "status")?;
    Ok(Callback {
        provider: id(row, "provider")?,
        notify_id: id(row, "notify_id")?,
        transaction_id: id(row, "transaction_id")?,
        order_no: id(row, "order_no")?,
        said: terms(row, "amount")?,
        status: Status::parse(&status).ok_or_else(|| DbError::shape(format!("payment status {status:?}")))?,
        paid_at: column(row, "paid_at")?,
    })
}

fn terms(row: &Row, amount: &str) -> Result<Terms, DbError> {
    let code: String = column(row, "currency")?;
    let currency = Currency::try_new(&code).ok_or_else(|| DbError::shape(format!("currency {code:?}")))?;
    Ok(Terms { merchant_id: id(row, "merchant_id")?, total: money(column(row, amount)?, currency)? })
}

fn money(minor: i64, currency: Currency) -> Result<Money, DbError> {
    Money::try_new(minor, currency).ok_or_else(|| DbError::shape("a negative amount"))
}

fn id<K: Kind>(row: &Row, name: &str) -> Result<Id<K>, DbError> {
    Id::try_new(column::<String>(row, name)?).map_err(|broken| DbError::shape(broken.message))
}

fn column<T: FromSqlOwned>(row: &Row, name: &str) -> Result<T, DbError> {
    row.try_get(name).map_err(|error| DbError::shape(error.to_string()))
}
