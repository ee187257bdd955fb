//! All SQL of `onceflow.consumer_layout`.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use uuid::Uuid;

use super::Layout;
use crate::db::{DbError, Tx};

const ALL: &str = "SELECT consumer, partitions, moving_to FROM onceflow.consumer_layout";

const READ: &str = "SELECT partitions, moving_to FROM onceflow.consumer_layout WHERE consumer = $1";

/// A move can't begin while the row is held.
const HOLD: &str = "SELECT partitions, moving_to FROM onceflow.consumer_layout WHERE consumer = $1 FOR SHARE";

const DECIDE: &str = "
    INSERT INTO onceflow.consumer_layout (consumer, partitions) VALUES ($1, $2) ON CONFLICT (consumer) DO NOTHING";

const TAKE: &str = "
    UPDATE onceflow.consumer_layout
       SET mover = $2, mover_until = clock_timestamp() + make_interval(secs => $3)
     WHERE consumer = $1 AND (mover IS NULL OR mover = $2 OR mover_until < clock_timestamp())
    RETURNING partitions, moving_to";

const GIVE_BACK: &str = "
    UPDATE onceflow.consumer_layout SET mover = NULL, mover_until = NULL WHERE consumer = $1 AND mover = $2";

const BEGIN_MOVE: &str = "
    UPDATE onceflow.consumer_layout SET moving_to = $4, changed_at = clock_timestamp()
     WHERE consumer = $1 AND mover = $2 AND mover_until > clock_timestamp()
       AND partitions = $3 AND (moving_to IS NULL OR moving_to = $4)";

const END_MOVE: &str = "
    UPDATE onceflow.consumer_layout SET partitions = $4, moving_to = $5, changed_at = clock_timestamp()
     WHERE consumer = $1 AND mover = $2 AND mover_until > clock_timestamp() AND partitions = $3 AND moving_to = $4";

pub(super) async fn all(tx: &Tx) -> Result<BTreeMap<String, Layout>, DbError> {
    Ok(tx.query(ALL, &[]).await?.iter().map(|row| (row.get("consumer"), layout(row))).collect())
}

pub(super) async fn read(tx: &Tx, consumer: &str) -> Result<Option<Layout>, DbError> {
    Ok(tx.query_opt(READ, &[&consumer]).await?.as_ref().map(layout))
}

pub(super) async fn hold(tx: &Tx, consumer: &str) -> Result<Option<Layout>, DbError> {
    Ok(tx.query_opt(HOLD, &[&consumer]).await?.as_ref().map(layout))
}

/// Does nothing where somebody has decided before.
pub(super) async fn decide(tx: &Tx, consumer: &str, partitions: u16) -> Result<(), DbError> {
    tx.execute(DECIDE, &[&consumer, &i32::from(partitions)]).await.map(|_| ())
}

/// `None` when another mover has it.
pub(super) async fn take(tx: &Tx, consumer: &str, mover: Uuid, seconds: f64) -> Result<Option<Layout>, DbError> {
    Ok(tx.query_opt(TAKE, &[&consumer, &mover, &seconds]).await?.as_ref().map(layout))
}

/// False when another mover has it.
pub(super) async fn give_back(tx: &Tx, consumer: &str, mover: Uuid) -> Result<bool, DbError> {
    Ok(tx.execute(GIVE_BACK, &[&consumer, &mover]).await? == 1)
}

/// False when the mover has lost the row.
pub(super) async fn begin_move(tx: &Tx, consumer: &str, mover: Uuid, (from, to): (u16, u16)) -> Result<bool, DbError> {
    Ok(tx.execute(BEGIN_MOVE, &[&consumer, &mover, &i32::from(from), &i32::from(to)]).await? == 1)
}

/// False when the mover has lost the row.
pub(super) async fn end_move(
    tx: &Tx,
    (consumer, mover): (&str, Uuid),
    (from, to): (u16, u16),
    next: Option<u16>,
) -> Result<bool, DbError> {
    let next = next.map(i32::from);
    Ok(tx.execute(END_MOVE, &[&consumer, &mover, &i32::from(from), &i32::from(to), &next]).await? == 1)
}

fn layout(row: &Row) -> Layout {
    Layout { partitions: small(row.get("partitions")), moving_to: row.get::<_, Option<i32>>("moving_to").map(small) }
}

/// The table holds 1 to 64.
fn small(number: i32) -> u16 {
    u16::try_from(number).unwrap_or(1)
}
