//! All SQL of `onceflow.outbox` on the relay's side.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{Json, ToSql};
use uuid::Uuid;

use super::floor::{Floors, Last, Lowest, Writing};
use super::handover::{Handover, Ticket};
use super::lease::Grant;
use super::row::{OutboxRow, Pending, Resent, RowHeaders};
use super::sweep::Confirmed;
use crate::db::{Commit, DbError, Tx};

/// Whether a writer other than `$me` has rows to publish in partition `p`, above its floors. By the expressions of an index of their own
/// (migration 0019): for a table that its statistics call nearly empty the planner would as soon take the index of all rows, and visit
/// those that are gone.
macro_rules! others_have_rows {
    ($me:literal, $strays:literal) => {
        concat!(
            some_row!($strays, "ours"),
            " OR ",
            some_row!("o.writer = -1", "theirs"),
            " OR ",
            some_row!("o.writer = 0", "theirs"),
            " OR ",
            some_row!(concat!("o.writer > 0 AND o.writer < ", $me), "ours"),
            " OR ",
            some_row!(concat!("o.writer > ", $me), "ours"),
        )
    };
}

/// One arm of it.
macro_rules! some_row {
    ($writer:expr, $floor:literal) => {
        concat!(
            "EXISTS (SELECT FROM onceflow.outbox o WHERE o.partition::int = p.partition AND ",
            $writer,
            " AND o.seq + 0 > p.",
            $floor,
            " AND num_nulls(o.parked_at) = 1)"
        )
    };
}

/// Of the rows that were `added`: where they went, and whether anybody else has rows in the partitions that our own relay publishes, which
/// may come before ours.
macro_rules! where_they_went {
    () => {
        concat!(
            "SELECT array_agg(seq ORDER BY seq), array_agg(partition ORDER BY seq), statement_timestamp(),
                    EXISTS (SELECT FROM unnest($10::smallint[], $11::bigint[], $12::bigint[]) AS p (partition, ours, theirs)
                            WHERE ",
            others_have_rows!("$9", "o.writer = -2"),
            ")
             FROM added"
        )
    };
}

/// Who wrote a row: this process, if its own relay publishes it, else `$otherwise`.
macro_rules! writer {
    ($otherwise:literal) => {
        concat!(
            "CASE WHEN onceflow.outbox_partition_of(tenant, partitionkey, aggregateid) = ANY ($10::smallint[]) THEN $9::bigint ELSE ",
            $otherwise,
            " END"
        )
    };
}

/// `seq` rises with `n`. A row that our relay does not publish is marked as nobody's: so those of others are found among themselves, above
/// the floor, and not among all that other writers ever wrote.
const APPEND: &str = concat!(
    "
    WITH added AS (
        INSERT INTO onceflow.outbox
            (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey, created_at, writer)
        SELECT id, tenant, aggregatetype, aggregateid, type, payload::json, headers, partitionkey, statement_timestamp(), ",
    writer!("-2"),
    "   FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], $8::text[])
            WITH ORDINALITY AS r (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey, n)
        ORDER BY n
        RETURNING seq, partition
    )
    ",
    where_they_went!()
);

/// As [`APPEND`]. The relay of another process is told of its rows (writer 0): they are few, and somebody waits for them.
const RESEND: &str = concat!(
    "
    WITH added AS (
        INSERT INTO onceflow.outbox
            (id, tenant, aggregatetype, aggregateid, type, payload_raw, headers, partitionkey, exchange, routingkey, created_at, writer)
        SELECT id, tenant, 'dead_letter', aggregateid, type, body, headers, partitionkey, '', queue, statement_timestamp(), ",
    writer!("0"),
    "   FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::jsonb[], $7::text[], $8::text[])
            WITH ORDINALITY AS r (id, tenant, aggregateid, type, body, headers, partitionkey, queue, n)
        ORDER BY n
        RETURNING seq, partition
    )
    ",
    where_they_went!()
);

/// Of the rows that a look may bring the next ones, whichever index finds them.
macro_rules! next_rows {
    ($found_by:literal) => {
        concat!(
            "(SELECT w.*, pg_column_size(w.headers) + coalesce(pg_column_size(w.payload_raw), pg_column_size(w.payload)) AS stored
              FROM onceflow.outbox w
              WHERE ",
            $found_by,
            " AND CASE WHEN p.key IS NULL THEN true
                       ELSE w.tenant || '/' || coalesce(w.partitionkey, w.aggregateid) = p.key END
              AND NOT (w.tenant || '/' || coalesce(w.partitionkey, w.aggregateid) = ANY($3))
              AND w.seq NOT IN (SELECT k FROM unnest($4::bigint[]) AS k)
              AND w.seq <= coalesce($6::bigint, 9223372036854775807)
              ORDER BY w.seq LIMIT $2)"
        )
    };
}

/// By state, never by `seq > last seen`: numbers become visible out of order; only what is below a floor is left out. Partition by
/// partition, so that the index gives the order whatever the backlog. A subplan over `known` is hashed, an array would be searched row by
/// row before version 15.
///
/// CASE where OR would do: by OR the planner expects so few rows that it reads and sorts whole partitions (250 ms instead of 4
/// with 50,000 rows).
///
/// Each place brings rows up to a number and a size, at least one: first by the size as it is stored, which reads no row that
/// lies outside the table (TOAST), then by the real one, which compression hides.
const READY: &str = concat!(
    "
    SELECT o.id, o.tenant, o.aggregatetype, o.aggregateid, o.type, o.body, o.payload IS NOT NULL, o.headers,
           o.tenant || '/' || coalesce(o.partitionkey, o.aggregateid), o.exchange, o.routingkey,
           o.partition, o.created_at, o.seq, o.has_more
    FROM unnest($1::smallint[], $5::text[], $8::bigint[], $9::bigint[]) AS p (partition, key, ours, theirs)
    CROSS JOIN LATERAL (
        SELECT b.*, sum(octet_length(b.body)) OVER (ORDER BY b.seq ROWS UNBOUNDED PRECEDING)
                    - octet_length(b.body) AS bytes_before
        FROM (
            SELECT s.*, coalesce(s.payload_raw, convert_to(s.payload::text, 'UTF8')) AS body
            FROM (
                SELECT r.*, lead(true, 1, false) OVER by_seq AS has_more,
                       sum(r.stored) OVER by_seq - r.stored AS stored_before
                FROM (
                    SELECT e.* FROM (",
    next_rows!("w.partition = p.partition AND w.seq > p.ours AND w.parked_at IS NULL"),
    "               UNION ALL ",
    next_rows!(
        "w.partition::int = p.partition AND w.writer IN (0, -1) AND w.seq + 0 > p.theirs AND w.seq + 0 <= p.ours
          AND num_nulls(w.parked_at) = 1"
    ),
    "               ) e
                    ORDER BY e.seq LIMIT $2
                ) r
                WINDOW by_seq AS (ORDER BY r.seq ROWS UNBOUNDED PRECEDING)
            ) s
            WHERE s.stored_before < $7
            OFFSET 0
        ) b
    ) o
    WHERE o.bytes_before < $7
    ORDER BY o.partition, o.seq"
);

/// Whether somebody other than the writer `$2` has rows to publish in the partitions, above the floors.
const OTHERS_HAVE_ROWS: &str = concat!(
    "SELECT EXISTS (
        SELECT FROM unnest($1::smallint[], $3::bigint[], $4::bigint[]) AS p (partition, ours, theirs)
        WHERE ",
    others_have_rows!("$2", "o.writer < -1"),
    ")"
);

/// Transactions that may have inserted rows, and whether they are surely none of ours: by name, and because ours are soon over. The lock is
/// taken before the number, and freed after the rows can be seen. Of a prepared transaction nobody is left.
const WRITING: &str = "
    SELECT l.virtualtransaction,
           bool_and(coalesce(a.application_name, '') NOT LIKE 'onceflow%'
                    AND coalesce(a.xact_start < clock_timestamp() - interval '30 seconds', true))
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.relation = 'onceflow.outbox'::regclass
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.mode = 'RowExclusiveLock'
    GROUP BY l.virtualtransaction";

/// The first rows of each partition above its floors: ours, and theirs.
const LOWEST: &str = "
    SELECT p.partition,
           (SELECT o.seq FROM onceflow.outbox o
            WHERE o.partition = p.partition AND o.seq > p.ours AND o.parked_at IS NULL AND o.writer NOT IN (0, -1)
            ORDER BY o.partition, o.seq LIMIT 1),
           least((SELECT o.seq FROM onceflow.outbox o
                  WHERE o.partition::int = p.partition AND o.writer = 0 AND o.seq + 0 > p.theirs AND num_nulls(o.parked_at) = 1
                  ORDER BY o.seq + 0 LIMIT 1),
                 (SELECT o.seq FROM onceflow.outbox o
                  WHERE o.partition::int = p.partition AND o.writer = -1 AND o.seq + 0 > p.theirs AND num_nulls(o.parked_at) = 1
                  ORDER BY o.seq + 0 LIMIT 1))
    FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS p (partition, ours, theirs)";

/// For those who only count: below its floor a partition has no rows of ours.
const SAVE_FLOORS: &str = "
    UPDATE onceflow.outbox_partition p SET floor = f.floor
    FROM unnest($1::smallint[], $2::bigint[]) AS f (partition, floor)
    WHERE p.partition = f.partition AND p.holder = $3 AND p.floor <> f.floor";

/// Not transactional: rows that others have not committed yet have their numbers too.
const LAST_SEQ: &str = "
    SELECT last_value - (NOT is_called)::int, extract(epoch FROM pg_postmaster_start_time())::float8 FROM onceflow.outbox_seq_seq";

/// The partitions of these epochs that `$holder` still holds, locked.
macro_rules! still_ours {
    ($holder:literal) => {
        concat!(
            "SELECT p.partition FROM onceflow.outbox_partition p
             JOIN unnest($1::smallint[], $2::bigint[]) AS h (partition, epoch)
               ON h.partition = p.partition AND h.epoch = p.epoch
             WHERE p.holder = ",
            $holder,
            " ORDER BY p.partition FOR UPDATE OF p"
        )
    };
}

/// Deletes, counts and compares the epoch in one statement.
///
/// Each row is found by its key and deleted by its place: this leaves the planner no way to read the whole table instead, which is
/// nearly empty by its statistics and full of rows that are gone while somebody holds a transaction open.
const REMOVE: &str = concat!(
    "WITH mine AS (",
    still_ours!("$5"),
    "), gone AS (
        DELETE FROM onceflow.outbox o
        WHERE o.ctid = ANY (ARRAY(
            SELECT f.place
            FROM unnest($3::text[], $4::uuid[]) AS k (tenant, id)
            CROSS JOIN LATERAL (SELECT w.ctid AS place, w.partition FROM onceflow.outbox w
                                WHERE w.tenant = k.tenant AND w.id = k.id OFFSET 0) f
            WHERE f.partition IN (SELECT partition FROM mine)))
        RETURNING o.partition, o.exchange IS NULL AS downstream
    ), counted AS (
        INSERT INTO onceflow.outbox_tally (partition, confirmed, replayed)
        SELECT partition, count(*) FILTER (WHERE downstream), count(*) FILTER (WHERE NOT downstream)
        FROM gone GROUP BY partition
    )
    SELECT count(*) FROM gone"
);

/// Adds up what was noted of partitions that are still ours.
const ADD_UP: &str = concat!(
    "WITH mine AS (",
    still_ours!("$3"),
    "), noted AS (
        DELETE FROM onceflow.outbox_tally t WHERE t.partition IN (SELECT partition FROM mine)
        RETURNING t.partition, t.confirmed, t.replayed
    )
    UPDATE onceflow.outbox_partition p
    SET confirmed = p.confirmed + n.confirmed, replayed = p.replayed + n.replayed
    FROM (SELECT partition, sum(confirmed)::bigint AS confirmed, sum(replayed)::bigint AS replayed
          FROM noted GROUP BY partition) n
    WHERE p.partition = n.partition"
);

/// A parked row is nobody's: whoever frees it hands it over to no relay.
const PARK: &str = "
    UPDATE onceflow.outbox o
    SET writer = 0, parked_at = clock_timestamp(), parked_reason = k.reason, attempts = o.attempts + 1
    FROM unnest($1::text[], $2::uuid[], $3::text[]) AS k (tenant, id, reason)
    WHERE o.tenant = k.tenant AND o.id = k.id AND o.parked_at IS NULL";

/// Writes rows as the last statement of `tx`, in order, commits it, and hands the rows to the relay of this process.
pub async fn append_and_commit(tx: Tx, rows: Vec<OutboxRow>, handover: &Handover) -> Commit {
    if rows.is_empty() {
        return tx.commit().await;
    }
    let ids: Vec<_> = rows.iter().map(|r| r.id).collect();
    let tenants: Vec<_> = rows.iter().map(|r| r.tenant.as_str()).collect();
    let kinds: Vec<_> = rows.iter().map(|r| r.aggregate_type.as_str()).collect();
    let aggregates: Vec<_> = rows.iter().map(|r| r.aggregate_id.as_str()).collect();
    let types: Vec<_> = rows.iter().map(|r| r.event_type.as_str()).collect();
    let payloads: Vec<_> = rows.iter().map(|r| r.payload.as_str()).collect();
    let headers: Vec<_> = rows.iter().map(|r| Json(&r.headers)).collect();
    let keys: Vec<_> = rows.iter().map(|r| r.partition_key.as_deref()).collect();
    let columns: [&(dyn ToSql + Sync); COLUMNS] =
        [&ids, &tenants, &kinds, &aggregates, &types, &payloads, &headers, &keys];
    let (commit, places) = write(tx, (APPEND, columns), handover).await;
    hand_over(rows, places, Pending::committed);
    commit
}

/// As [`append_and_commit`], for messages that are published once more as they were.
pub async fn resend_and_commit(tx: Tx, rows: Vec<Resent>, handover: &Handover) -> Commit {
    if rows.is_empty() {
        return tx.commit().await;
    }
    let ids: Vec<_> = rows.iter().map(|r| r.id).collect();
    let tenants: Vec<_> = rows.iter().map(|r| r.tenant.as_str()).collect();
    let aggregates: Vec<_> = rows.iter().map(|r| r.dead_letter.to_string()).collect();
    let types: Vec<_> = rows.iter().map(|r| r.event_type.as_str()).collect();
    let bodies: Vec<_> = rows.iter().map(|r| r.body.as_slice()).collect();
    let headers: Vec<_> = rows.iter().map(|r| &r.headers).collect();
    let keys: Vec<_> = rows.iter().map(|r| r.key.as_str()).collect();
    let queues: Vec<_> = rows.iter().map(|r| r.queue.as_str()).collect();
    let columns: [&(dyn ToSql + Sync); COLUMNS] =
        [&ids, &tenants, &aggregates, &types, &bodies, &headers, &keys, &queues];
    let (commit, places) = write(tx, (RESEND, columns), handover).await;
    hand_over(rows, places, Pending::resent);
    commit
}

/// Where rows are, for the relay of this process.
struct Places {
    ticket: Ticket,
    row: Row,
}

/// Arrays that a statement takes which writes rows.
const COLUMNS: usize = 8;

/// Writes rows and commits; tells where they are if it is committed.
async fn write(
    tx: Tx,
    (statement, columns): (&'static str, [&(dyn ToSql + Sync); COLUMNS]),
    handover: &Handover,
) -> (Commit, Option<Places>) {
    // With the locks that order the rows of a key held, and before the commit frees them.
    let ticket = handover.ticket();
    let (commit, answer) = {
        let (held, floors) = ticket.held();
        let [a, b, c, d, e, f, g, h] = columns;
        let params: [&(dyn ToSql + Sync); COLUMNS + 4] =
            [a, b, c, d, e, f, g, h, &handover.writer(), &held, &floors.ours, &floors.theirs];
        tx.query_and_commit(statement, &params).await
    };
    let places = match (&commit, answer.into_iter().next()) {
        (Commit::Committed, Some(row)) => Some(Places { ticket, row }),
        (Commit::RolledBack(_), _) => None,
        (Commit::Committed | Commit::Unknown(_), _) => {
            ticket.unknown();
            None
        }
    };
    (commit, places)
}

/// To the relay, as they would be read back.
fn hand_over<R>(rows: Vec<R>, places: Option<Places>, pending: impl Fn(R, (i64, i16), Timestamp) -> Pending) {
    let Some(Places { ticket, row: answer }) = places else { return };
    let seqs: Vec<i64> = answer.get(0);
    let partitions: Vec<i16> = answer.get(1);
    let created_at = answer.get(2);
    let places = seqs.into_iter().zip(partitions);
    let rows = rows.into_iter().zip(places).map(|(row, place)| pending(row, place, created_at)).collect();
    ticket.committed(rows, answer.get(3));
}

/// A partition, and either one of its keys or all.
pub(super) type Place = (i16, Option<Arc<str>>);

/// What a look at the table is to bring.
pub(super) struct Look<'a> {
    /// Where.
    pub(super) places: &'a [Place],
    /// Below it there is nothing, in the order of the places.
    pub(super) floors: &'a Floors,
    /// Only rows with numbers up to this one.
    pub(super) until: Option<i64>,
    /// Most rows of each place.
    pub(super) limit: usize,
    /// Most bytes of their bodies, one row aside.
    pub(super) bytes: usize,
    /// Keys to leave out.
    pub(super) without_keys: &'a [&'a str],
    /// Rows that are known already.
    pub(super) known: &'a [i64],
}

/// What a look at the table has brought.
pub(super) struct Found {
    pub(super) rows: Vec<Pending>,
    /// Nothing else is there.
    pub(super) everything: bool,
}

/// The next rows of some places.
pub(super) async fn ready(tx: &Tx, look: Look<'_>) -> Result<Found, DbError> {
    let partitions: Vec<i16> = look.places.iter().map(|(partition, _)| *partition).collect();
    let keys: Vec<Option<&str>> = look.places.iter().map(|(_, key)| key.as_deref()).collect();
    let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (limit, bytes) = (whole(look.limit), whole(look.bytes));
    let Look { without_keys, known, until, floors, .. } = &look;
    let Floors { ours, theirs } = floors;
    let params: [&(dyn ToSql + Sync); 9] =
        [&partitions, &limit, without_keys, known, &keys, until, &bytes, ours, theirs];
    let rows = tx.query(READY, &params).await?;
    let of_places = rows.chunk_by(|a, b| a.get::<_, i16>(11) == b.get::<_, i16>(11));
    let is_cut = |place: &[Row]| place.len() >= look.limit || place.last().is_some_and(|row| row.get(14));
    let everything = !of_places.into_iter().any(is_cut);
    let pending = |row: Row| Pending {
        id: row.get(0),
        tenant: row.get(1),
        aggregate_type: row.get(2),
        aggregate_id: row.get(3),
        event_type: row.get(4),
        body: row.get::<_, Vec<u8>>(5).into(),
        is_json: row.get(6),
        headers: RowHeaders::Stored(row.get(7)),
        key: row.get::<_, &str>(8).into(),
        exchange: row.get(9),
        routing_key: row.get(10),
        partition: row.get(11),
        created_at: row.get(12),
        seq: row.get(13),
    };
    Ok(Found { rows: rows.into_iter().map(pending).collect(), everything })
}

/// Whether others have rows to publish in some partitions.
pub(super) async fn others_have_rows(
    tx: &Tx,
    (partitions, floors): (&[i16], &Floors),
    writer: i64,
) -> Result<bool, DbError> {
    let Floors { ours, theirs } = floors;
    Ok(tx.query_one(OTHERS_HAVE_ROWS, &[&partitions, &writer, ours, theirs]).await?.get(0))
}

/// The transactions that may have inserted rows that can't be seen yet.
pub(super) async fn writing(tx: &Tx) -> Result<Writing, DbError> {
    let rows = tx.query(WRITING, &[]).await?;
    let all = rows.iter().map(|row| row.get(0)).collect();
    let ours = rows.iter().filter(|row| !row.get::<_, bool>(1)).map(|row| row.get(0)).collect();
    Ok(Writing { all, ours })
}

/// Of each partition the numbers of the first rows above its floors.
pub(super) async fn lowest(tx: &Tx, (partitions, floors): (&[i16], &Floors)) -> Result<Vec<Lowest>, DbError> {
    let rows = tx.query(LOWEST, &[&partitions, &floors.ours, &floors.theirs]).await?;
    let lowest = |row: &Row| Lowest { partition: row.get(0), ours: row.get(1), theirs: row.get(2) };
    Ok(rows.iter().map(lowest).collect())
}

/// Lets those who only count know the floors.
pub(super) async fn save_floors(tx: &Tx, (partitions, floors): (&[i16], &Floors), holder: &str) -> Result<(), DbError> {
    tx.execute(SAVE_FLOORS, &[&partitions, &floors.ours, &holder]).await.map(|_| ())
}

/// The greatest number that any row has so far.
pub(super) async fn last_seq(tx: &Tx) -> Result<Last, DbError> {
    let row = tx.query_one(LAST_SEQ, &[]).await?;
    Ok(Last { seq: row.get(0), server: row.get(1) })
}

/// Removes confirmed rows of partitions that are still ours; returns how many.
pub(super) async fn remove(tx: &Tx, grant: &Grant, rows: &[Confirmed]) -> Result<i64, DbError> {
    let tenants: Vec<_> = rows.iter().map(|row| row.tenant.as_str()).collect();
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let (partitions, epochs): (Vec<_>, Vec<_>) = grant.held.iter().copied().unzip();
    let row = tx.query_one(REMOVE, &[&partitions, &epochs, &tenants, &ids, &grant.holder]).await?;
    Ok(row.get(0))
}

/// Adds up the books of partitions that are still ours.
pub(super) async fn add_up(tx: &Tx, grant: &Grant) -> Result<(), DbError> {
    let (partitions, epochs): (Vec<_>, Vec<_>) = grant.held.iter().copied().unzip();
    tx.execute(ADD_UP, &[&partitions, &epochs, &grant.holder]).await.map(|_| ())
}

/// Puts rows aside with the reason; they stay until somebody retries or discards them.
pub(super) async fn park(tx: &Tx, rows: &[(String, Uuid, String)]) -> Result<(), DbError> {
    let tenants: Vec<_> = rows.iter().map(|(tenant, ..)| tenant.as_str()).collect();
    let ids: Vec<_> = rows.iter().map(|(_, id, _)| *id).collect();
    let reasons: Vec<_> = rows.iter().map(|(.., reason)| reason.as_str()).collect();
    tx.execute(PARK, &[&tenants, &ids, &reasons]).await.map(|_| ())
}
