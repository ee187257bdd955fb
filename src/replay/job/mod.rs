//! Replaying, discarding or archiving many dead letters: one state machine, whoever asks for it, with its position in the database.
//!
//! ```text
//! planned → held → canary → running ⇄ paused → done | stopped | cancelled
//! ```
//!
//! | state | meaning | leaves it |
//! |---|---|---|
//! | planned | the dead letters are listed by id, nothing happens | `start`; `approve` where it is so large that a second person has to agree |
//! | held | the undo window: begins by itself at `hold_until` | time, `start`, `cancel` (= undo) |
//! | canary | the first few, spread over the kinds of failure, are on their way | all succeeded; one failed → paused |
//! | running | the rest, ever faster up to the rate | nothing left → done; a rule → stopped |
//! | paused | by an operator or by a failed canary | `resume`, `cancel` |
//! | done, stopped, cancelled | final; results of what was on its way are still written down | |
//!
//! **Invariants**, kept by the schema where it can:
//! - The list is frozen when it is planned (one `INSERT … SELECT`). What fails later is a newcomer: counted, never included.
//! - A dead letter belongs to one live job at most (unique index); a second operator is told whose it is.
//! - An item is `sent` in the transaction that marks its dead letter `replaying` and writes the outbox row. So no crash sends
//!   without knowing it, or knows without sending.
//! - One of an ordering key is on its way at most (unique index over all jobs); the next of the key becomes `ready` in the
//!   transaction that writes down the result. Within a key the order is that of the first failure.
//! - `planned = waiting + in_flight + succeeded + failed_again + skipped` (CHECK), so the books of a job add up at any moment.
//! - Exactly one process runs a job: it locks the row by holder *and* epoch before it writes anything, a takeover raises the epoch,
//!   and an operator's change locks the same row. So a cancel is never followed by one more send.
//! - A job that needs a second person leaves `planned` only with the name of one who did not plan it (CHECK).
//! - Every change leaves an audit row in its own transaction: one for the operation, one for each dead letter touched.
//!
//! **What each failure does**
//! - *The process dies*: whatever was committed is known, the rest never happened. The lease runs out within [`LEASE`] and another
//!   process, or the next one, goes on; it starts slowly again.
//! - *The answer to COMMIT is lost*: the next step reads the database again and sees which it was.
//! - *The database is away*: no step can be made; the runner waits and goes on. Consumers spend no attempt meanwhile (I-7), so an
//!   outage never looks like a failed replay.
//! - *The broker is away*: nothing more is sent, and `waits_for` says so; what was committed waits in the outbox.
//! - *The consumer is paused*: its dead letters stay waiting.
//! - *The consumer is slow or has much else to do, or live deliveries of any consumer take longer*: the rate is cut until results
//!   catch up, live deliveries take their usual time, and what waits at the broker is less; then it rises again, carefully near what was
//!   too much. What this process can't see is left out of account.
//! - *Replays fail again*: their dead letters are open again with one replay more; at [`REPLAY_CAP`] they are parked, which means
//!   that no job takes them. A failed canary pauses; ten failures in a row, or more than half of the last fifty, stop the job.
//! - *Somebody else dealt with a dead letter meanwhile*: it is skipped, with the reason.

mod control;
mod hints;
mod load;
mod machine;
mod model;
mod pace;
mod plan;
mod plan_store;
mod runner;
mod store;
mod usual;
#[cfg(test)]
mod world;

pub use control::{approve, cancel, job, jobs, pause, resume, set_rate, start, totals};
pub use hints::{Hints, Preview, Target, hints};
pub use load::{Load, Loads, Outlook};
pub use model::{
    Action, Job, JobError, Kind, Left, LeftOut, MAX_CANARY, MAX_HOLD_SECONDS, MAX_IN_FLIGHT, MAX_RATE, NewJob, Plan,
    Planned, Settings, State,
};
pub use plan::create;
pub use runner::{Runner, run_jobs};

use std::time::Duration;

/// How long a process that says nothing keeps a job.
pub const LEASE: Duration = Duration::from_secs(5);
/// Replays after which no job takes a dead letter any more; one by one it can still be replayed.
pub const REPLAY_CAP: i32 = 3;
