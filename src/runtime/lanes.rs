//! The lanes of one consumer, shared by everything that it reads: whichever queue brought them, jobs wait in one backlog.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::attempt::Attempter;
use super::attempts::Attempts;
use super::backlog::Backlog;
use super::copies::Copies;
use super::delivery::Shared;
use super::erased::AnyConsumer;
use super::job::Job;
use super::kill_switch::KillSwitch;
use super::lane::Lane;
use super::order::Line;
use super::settle::Settler;

/// Where jobs are handed over.
#[derive(Debug)]
pub(super) struct Lanes(Backlog);

impl Lanes {
    /// Starts the lanes of a consumer as tasks of the caller.
    pub(super) fn start(
        consumer: &Arc<dyn AnyConsumer>,
        shared: &Shared,
        switch: &KillSwitch,
        line: Option<&Line>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let backlog = Backlog::new(shared.settings.batch);
        let copies = Arc::new(Copies::default());
        for _ in 0..shared.settings.lanes {
            tasks.spawn(lane(consumer, shared, switch, (&backlog, &copies, line)).run());
        }
        Self(backlog)
    }

    /// Hands a job over; the prefetch bounds what waits.
    pub(super) fn hand(&self, job: Job) {
        self.0.add(job);
    }

    /// So many lanes may be at work because full batches wait.
    pub(super) fn share(&self, lanes: usize) {
        self.0.share(lanes);
    }

    /// No further jobs come: the lanes end when nothing waits.
    pub(super) fn close(&self) {
        self.0.close();
    }
}

fn lane(
    consumer: &Arc<dyn AnyConsumer>,
    shared: &Shared,
    switch: &KillSwitch,
    (backlog, copies, line): (&Backlog, &Arc<Copies>, Option<&Line>),
) -> Lane {
    Lane {
        attempter: Attempter {
            consumer: consumer.clone(),
            pool: shared.pool.clone(),
            handler_timeout: shared.settings.handler_timeout,
            outbox: shared.outbox.clone(),
            copies: copies.clone(),
            line: line.cloned(),
        },
        settler: Settler {
            consumer: consumer.name(),
            settings: shared.settings.clone(),
            pool: shared.pool.clone(),
            retries: shared.retries.clone(),
            switch: switch.clone(),
            attempts: Attempts::of(shared.share.instance()),
            line: line.cloned(),
            abort: shared.abort.clone(),
        },
        health: shared.health.clone(),
        backlog: backlog.clone(),
        abort: shared.abort.clone(),
    }
}
