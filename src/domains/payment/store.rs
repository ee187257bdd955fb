//! All SQL of `payment_order`, `payment_order_line` and `payment`. Every statement deals with a whole batch.
//!
//! **Lock protocol.** Before it reads or writes anything of its orders, a transaction locks their rows with one statement
//! (`LOCK_ORDERS`), which inserts those that are missing. It takes them one after the other in key order.
//!
//! - *No orphan is missed.* An order's placing and a callback for it both hold the same row until they commit. Whoever
//!   comes second waits; its later statements take a new snapshot (READ COMMITTED) and see what the first one wrote.
//!   That the order may not have been placed yet doesn't matter: the row stands for the number, not for the order. A row
//!   that the statement inserted itself was known to nobody: no payment and no line can refer to it.
//! - *No deadlock.* A transaction waits for an order's row, inserted or locked by another, only while it holds rows with
//!   lower keys. The one exception is a provider that uses a notification or transaction id for two orders at once: its
//!   payments are inserted in order of arrival. The server then ends one of the two (40P01), which is tried again.
//!
//! **Plans.** Statements are prepared, and may be planned while their tables are empty. Where a join could be planned as a walk
//! through a table that grows since, the statement is an upsert or a lateral subquery that can't be flattened, which finds
//! each row by its key.

use foldhash::{HashMap, HashMapExt as _, HashSet};

use tokio_postgres::Row as PgRow;
use tokio_postgres::types::FromSqlOwned;

use super::event::{Callback, Line, Status};
use super::id::{Id, Kind};
use super::model::{OrderState, Terms};
use super::money::{Currency, Money};
use super::order::{Key, Order};
use super::payments::{Payment, Recorded};
use super::stored::Row;
use crate::db::{DbError, Tx};

/// The condition is never true, but a row is locked before it is asked. Returns the rows that are new.
const LOCK_ORDERS: &str = "
    insert into onceflow.payment_order as o (tenant, order_no, state, merchant_id, currency, total, cancel_reason, version)
    select k.tenant, k.order_no, k.state, k.merchant_id, k.currency, k.total, k.cancel_reason, k.version
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::bigint[])
        as k (tenant, order_no, state, merchant_id, currency, total, cancel_reason, version)
     order by k.tenant, k.order_no
        on conflict (tenant, order_no) do update set version = o.version where false
    returning o.tenant, o.order_no";

/// The rows are there and locked.
const SAVE_ORDERS: &str = "
    insert into onceflow.payment_order as o (tenant, order_no, state, merchant_id, currency, total, cancel_reason, version)
    select k.tenant, k.order_no, k.state, k.merchant_id, k.currency, k.total, k.cancel_reason, k.version
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::bigint[])
        as k (tenant, order_no, state, merchant_id, currency, total, cancel_reason, version)
     order by k.tenant, k.order_no
        on conflict (tenant, order_no) do update
       set state = excluded.state, merchant_id = excluded.merchant_id, currency = excluded.currency,
           total = excluded.total, cancel_reason = excluded.cancel_reason, version = excluded.version,
           changed_at = clock_timestamp()
    returning o.version";

const SELECT_ORDERS: &str = "
    select o.tenant, o.order_no, o.state, o.merchant_id, o.currency, o.total, o.cancel_reason, o.version,
           case o.state
               when 'AWAITED' then (select count(*)
                                      from onceflow.payment p
                                     where p.tenant = o.tenant and p.order_no = o.order_no and p.disposition = 'orphan')
               else 0
           end as orphans
      from unnest($1::text[], $2::text[]) as k (tenant, order_no)
     cross join lateral (select r.tenant, r.order_no, r.state, r.merchant_id, r.currency, r.total, r.cancel_reason, r.version
                           from onceflow.payment_order r
                          where r.tenant = k.tenant and r.order_no = k.order_no
                          limit 1) as o";

const SELECT_ORPHANS: &str = "
    select o.tenant, o.provider, o.transaction_id, o.status, o.notify_id, o.order_no, o.merchant_id, o.currency, o.amount,
           o.paid_at
      from unnest($1::text[], $2::text[]) as k (tenant, order_no)
     cross join lateral (select p.tenant, p.provider, p.transaction_id, p.status, p.notify_id, p.order_no, p.merchant_id,
                                p.currency, p.amount, p.paid_at, p.seq
                           from onceflow.payment p
                          where p.tenant = k.tenant and p.order_no = k.order_no and p.disposition = 'orphan'
                         offset 0) as o
     order by o.seq";

const SELECT_LINES: &str = "
    select l.tenant, l.order_no, l.sku, l.quantity, l.unit_price, l.currency
      from unnest($1::text[], $2::text[]) as k (tenant, order_no)
     cross join lateral (select r.tenant, r.order_no, r.line_no, r.sku, r.quantity, r.unit_price, o.currency
                           from onceflow.payment_order_line r
                           join onceflow.payment_order o on o.tenant = r.tenant and o.order_no = r.order_no
                          where r.tenant = k.tenant and r.order_no = k.order_no
                         offset 0) as l
     order by l.tenant, l.order_no, l.line_no";

const INSERT_LINES: &str = "
    insert into onceflow.payment_order_line (tenant, order_no, line_no, sku, quantity, unit_price)
    select l.tenant, l.order_no, l.line_no, l.sku, l.quantity, l.unit_price
      from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::bigint[], $6::bigint[])
        as l (tenant, order_no, line_no, sku, quantity, unit_price)";

/// In order of arrival. Passes over what conflicts: a notification id, a transaction with its status, or a second payment of
/// an order.
const INSERT_PAYMENTS: &str = "
    insert into onceflow.payment (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency,
                                  amount, paid_at, disposition, reasons)
    select k.tenant, k.provider, k.transaction_id, k.status, k.notify_id, k.order_no, k.merchant_id, k.currency,
           k.amount, k.paid_at, k.disposition, string_to_array(k.reasons, ',')
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::bigint[], $10::timestamptz[], $11::text[], $12::text[])
           with ordinality
        as k (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency,
              amount, paid_at, disposition, reasons, n)
     order by k.n
        on conflict do nothing
    returning tenant, provider, transaction_id, status";

/// The rows are there, and nobody changes payments of an order that another has locked.
const SETTLE_PAYMENTS: &str = "
    insert into onceflow.payment (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency,
                                  amount, paid_at, disposition, reasons)
    select k.tenant, k.provider, k.transaction_id, k.status, k.notify_id, k.order_no, k.merchant_id, k.currency,
           k.amount, k.paid_at, k.disposition, string_to_array(k.reasons, ',')
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::bigint[], $10::timestamptz[], $11::text[], $12::text[])
        as k (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency,
              amount, paid_at, disposition, reasons)
        on conflict (tenant, provider, transaction_id, status) do update
       set disposition = excluded.disposition, reasons = excluded.reasons
    returning tenant, provider, transaction_id, status";

const SELECT_RECORDED: &str = "
    select r.tenant, r.provider, r.transaction_id, r.status, r.notify_id, r.order_no, r.merchant_id, r.currency, r.amount,
           r.paid_at
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
        as k (tenant, provider, transaction_id, status, notify_id)
     cross join lateral (
           select p.tenant, p.provider, p.transaction_id, p.status, p.notify_id, p.order_no, p.merchant_id, p.currency,
                  p.amount, p.paid_at
             from onceflow.payment p
            where p.tenant = k.tenant and p.provider = k.provider and p.transaction_id = k.transaction_id
              and p.status = k.status
            union all
           select p.tenant, p.provider, p.transaction_id, p.status, p.notify_id, p.order_no, p.merchant_id, p.currency,
                  p.amount, p.paid_at
             from onceflow.payment p
            where p.tenant = k.tenant and p.provider = k.provider and p.notify_id = k.notify_id) as r";

/// Locks the rows of these orders in key order. Missing ones are inserted as given, and come first in the answer; then those
/// that were there, whatever is in them.
pub(super) async fn lock_orders(tx: &Tx, orders: Vec<Order>) -> Result<(Vec<Order>, Vec<Order>), DbError> {
    let inserted = upsert_orders(tx, LOCK_ORDERS, &orders.iter().collect::<Vec<_>>()).await?;
    let inserted =
        inserted.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?))).collect::<Result<HashSet<_>, DbError>>()?;
    Ok(orders.into_iter().partition(|order| inserted.contains(&order.key())))
}

/// Writes orders whose rows are locked.
pub(super) async fn save_orders(tx: &Tx, orders: &[&Order]) -> Result<(), DbError> {
    if orders.is_empty() {
        return Ok(());
    }
    all_written(upsert_orders(tx, SAVE_ORDERS, orders).await?.len(), orders.len())
}

async fn upsert_orders(tx: &Tx, sql: &'static str, orders: &[&Order]) -> Result<Vec<PgRow>, DbError> {
    let terms = || orders.iter().map(|order| order.terms.as_ref());
    let (tenants, order_nos): (Vec<_>, Vec<_>) = orders.iter().map(|order| order.key()).unzip();
    let states: Vec<_> = orders.iter().map(|order| order.state.as_str()).collect();
    let merchants: Vec<_> = terms().map(|terms| terms.map(|terms| terms.merchant_id.as_str())).collect();
    let currencies: Vec<_> = terms().map(|terms| terms.map(|terms| terms.total.currency().to_string())).collect();
    let totals: Vec<_> = terms().map(|terms| terms.map(|terms| terms.total.minor())).collect();
    let reasons: Vec<_> = orders.iter().map(|order| order.cancel_reason.as_deref()).collect();
    let versions: Vec<_> = orders.iter().map(|order| order.version).collect();
    tx.query(sql, &[&tenants, &order_nos, &states, &merchants, &currencies, &totals, &reasons, &versions]).await
}

/// The rows of these orders, in any order.
pub(super) async fn orders(tx: &Tx, keys: &[Key<'_>]) -> Result<Vec<Row>, DbError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (tenants, order_nos) = columns(keys);
    let rows = tx.query(SELECT_ORDERS, &[&tenants, &order_nos]).await?;
    let row = |row: &PgRow| Ok(Row { order: order(row)?, is_new: false, orphans: column(row, "orphans")? });
    rows.iter().map(row).collect()
}

/// The callbacks that wait for these orders, in order of arrival.
pub(super) async fn orphans(tx: &Tx, keys: &[Key<'_>]) -> Result<Vec<Recorded>, DbError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (tenants, order_nos) = columns(keys);
    let rows = tx.query(SELECT_ORPHANS, &[&tenants, &order_nos]).await?;
    rows.iter().map(recorded_payment).collect()
}

/// The lines of these orders, by tenant and order number.
pub(super) async fn lines(tx: &Tx, keys: &[Key<'_>]) -> Result<HashMap<(String, String), Vec<Line>>, DbError> {
    let mut lines: HashMap<_, Vec<Line>> = HashMap::new();
    if keys.is_empty() {
        return Ok(lines);
    }
    let (tenants, order_nos) = columns(keys);
    for row in tx.query(SELECT_LINES, &[&tenants, &order_nos]).await? {
        let unit_price = money(column(&row, "unit_price")?, currency(&row)?)?;
        let line = Line { sku: id(&row, "sku")?, quantity: column(&row, "quantity")?, unit_price };
        lines.entry((column(&row, "tenant")?, column(&row, "order_no")?)).or_default().push(line);
    }
    Ok(lines)
}

/// Writes the lines of orders that are placed.
pub(super) async fn insert_lines(tx: &Tx, placed: &[(&Order, &[Line])]) -> Result<(), DbError> {
    if placed.is_empty() {
        return Ok(());
    }
    let flat = || placed.iter().flat_map(|(order, lines)| lines.iter().zip(0..).map(move |(line, n)| (order, n, line)));
    let tenants: Vec<_> = flat().map(|(order, _, _)| order.tenant.as_str()).collect();
    let order_nos: Vec<_> = flat().map(|(order, _, _)| order.order_no.as_str()).collect();
    let numbers: Vec<i32> = flat().map(|(_, n, _)| n).collect();
    let skus: Vec<_> = flat().map(|(_, _, line)| line.sku.as_str()).collect();
    let quantities: Vec<_> = flat().map(|(_, _, line)| line.quantity).collect();
    let prices: Vec<_> = flat().map(|(_, _, line)| line.unit_price.minor()).collect();
    let written = tx.execute(INSERT_LINES, &[&tenants, &order_nos, &numbers, &skus, &quantities, &prices]).await?;
    all_written(usize::try_from(written).unwrap_or(usize::MAX), numbers.len())
}

/// Records payments and returns those that could not be, because they were recorded before.
pub(super) async fn insert_payments<'p, 'a>(
    tx: &Tx,
    payments: &'p [Payment<'a>],
) -> Result<Vec<&'p Payment<'a>>, DbError> {
    if payments.is_empty() {
        return Ok(Vec::new());
    }
    let rows = upsert_payments(tx, INSERT_PAYMENTS, &payments.iter().collect::<Vec<_>>()).await?;
    if rows.len() == payments.len() {
        return Ok(Vec::new());
    }
    let inserted = rows.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?, text(row, 2)?, text(row, 3)?)));
    let inserted = inserted.collect::<Result<HashSet<_>, DbError>>()?;
    let is_refused = |payment: &&Payment<'_>| {
        let Callback { provider, transaction_id, status, .. } = payment.callback;
        !inserted.contains(&(payment.tenant, provider.as_str(), transaction_id.as_str(), status.as_str()))
    };
    Ok(payments.iter().filter(is_refused).collect())
}

/// Writes down what became of payments that are recorded.
pub(super) async fn settle_payments(tx: &Tx, payments: Vec<&Payment<'_>>) -> Result<(), DbError> {
    if payments.is_empty() {
        return Ok(());
    }
    all_written(upsert_payments(tx, SETTLE_PAYMENTS, &payments).await?.len(), payments.len())
}

async fn upsert_payments(tx: &Tx, sql: &'static str, payments: &[&Payment<'_>]) -> Result<Vec<PgRow>, DbError> {
    let tenants: Vec<_> = payments.iter().map(|p| p.tenant).collect();
    let providers: Vec<_> = payments.iter().map(|p| p.callback.provider.as_str()).collect();
    let transactions: Vec<_> = payments.iter().map(|p| p.callback.transaction_id.as_str()).collect();
    let statuses: Vec<_> = payments.iter().map(|p| p.callback.status.as_str()).collect();
    let notifications: Vec<_> = payments.iter().map(|p| p.callback.notify_id.as_str()).collect();
    let order_nos: Vec<_> = payments.iter().map(|p| p.callback.order_no.as_str()).collect();
    let merchants: Vec<_> = payments.iter().map(|p| p.callback.said.merchant_id.as_str()).collect();
    let currencies: Vec<_> = payments.iter().map(|p| p.callback.said.total.currency().to_string()).collect();
    let amounts: Vec<_> = payments.iter().map(|p| p.callback.said.total.minor()).collect();
    let times: Vec<_> = payments.iter().map(|p| p.callback.paid_at).collect();
    let dispositions: Vec<_> = payments.iter().map(|p| p.verdict.disposition.as_str()).collect();
    // An array of arrays can't be unnested by one level; our codes hold no comma.
    let reasons: Vec<_> = payments.iter().map(|p| p.verdict.reasons.join(",")).collect();
    tx.query(
        sql,
        &[
            &tenants,
            &providers,
            &transactions,
            &statuses,
            &notifications,
            &order_nos,
            &merchants,
            &currencies,
            &amounts,
            &times,
            &dispositions,
            &reasons,
        ],
    )
    .await
}

/// What is recorded under the notification ids of these payments, or under their transactions with the same status.
pub(super) async fn recorded(tx: &Tx, payments: &[&Payment<'_>]) -> Result<Vec<Recorded>, DbError> {
    let tenants: Vec<_> = payments.iter().map(|p| p.tenant).collect();
    let providers: Vec<_> = payments.iter().map(|p| p.callback.provider.as_str()).collect();
    let transactions: Vec<_> = payments.iter().map(|p| p.callback.transaction_id.as_str()).collect();
    let statuses: Vec<_> = payments.iter().map(|p| p.callback.status.as_str()).collect();
    let notifications: Vec<_> = payments.iter().map(|p| p.callback.notify_id.as_str()).collect();
    let rows = tx.query(SELECT_RECORDED, &[&tenants, &providers, &transactions, &statuses, &notifications]).await?;
    rows.iter().map(recorded_payment).collect()
}

fn columns<'a>(keys: &[Key<'a>]) -> (Vec<&'a str>, Vec<&'a str>) {
    keys.iter().copied().unzip()
}

/// A trigger or a foreign hand that takes rows away must not go unseen.
fn all_written(written: usize, wanted: usize) -> Result<(), DbError> {
    if written == wanted {
        return Ok(());
    }
    Err(DbError::shape(format!(
        "{written} of {wanted} rows of a payment table were written; look for triggers or rules on it"
    )))
}

fn order(row: &PgRow) -> Result<Order, DbError> {
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

fn recorded_payment(row: &PgRow) -> Result<Recorded, DbError> {
    let status: String = column(row, "status")?;
    let callback = Callback {
        provider: id(row, "provider")?,
        notify_id: id(row, "notify_id")?,
        transaction_id: id(row, "transaction_id")?,
        order_no: id(row, "order_no")?,
        said: terms(row, "amount")?,
        status: Status::parse(&status).ok_or_else(|| DbError::shape(format!("payment status {status:?}")))?,
        paid_at: column(row, "paid_at")?,
    };
    Ok(Recorded { tenant: column(row, "tenant")?, callback })
}

fn terms(row: &PgRow, amount: &str) -> Result<Terms, DbError> {
    Ok(Terms { merchant_id: id(row, "merchant_id")?, total: money(column(row, amount)?, currency(row)?)? })
}

fn currency(row: &PgRow) -> Result<Currency, DbError> {
    let code: String = column(row, "currency")?;
    Currency::try_new(&code).ok_or_else(|| DbError::shape(format!("currency {code:?}")))
}

fn money(minor: i64, currency: Currency) -> Result<Money, DbError> {
    Money::try_new(minor, currency).ok_or_else(|| DbError::shape("a negative amount"))
}

fn id<K: Kind>(row: &PgRow, name: &str) -> Result<Id<K>, DbError> {
    Id::try_new(column::<String>(row, name)?).map_err(|broken| DbError::shape(broken.message))
}

fn column<T: FromSqlOwned>(row: &PgRow, name: &str) -> Result<T, DbError> {
    row.try_get(name).map_err(|error| DbError::shape(error.to_string()))
}

fn text(row: &PgRow, index: usize) -> Result<&str, DbError> {
    row.try_get(index).map_err(|error| DbError::shape(error.to_string()))
}
