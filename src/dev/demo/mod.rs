//! The demo: a sample world through the real thing, the books, and the story of a failure that is mended and replayed.

mod books;
mod screen;
mod store;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use uuid::Uuid;

use crate::broker::{
    Binding, ExchangeSpec, Link, Outgoing, QueueKind, QueueSpec, Topology, publish_once, queue_depths,
};
use crate::config::Config;
use crate::db::Pool;
use crate::replay::{self, Change, Filter, Group, Selection};
use crate::runtime::Names;
use books::{Books, Look};
use screen::Screen;
use world::World;

/// Longest wait for everything to come to rest.
const REST_WITHIN: Duration = Duration::from_secs(120);
/// Sums that don't add up, and don't change any more for so long, never will.
const LOST_AFTER: Duration = Duration::from_secs(20);
/// How often the table is drawn.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Messages published between two looks.
const PUBLISH_CHUNK: usize = 400;
/// The group whose story is told.
const STORY_REASON: &str = "department_cycle";

/// What the demo works with.
pub(super) struct Demo<'a> {
    pub(super) config: &'a Config,
    pub(super) pool: &'a Pool,
    pub(super) link: &'a Link,
    pub(super) consumers: Vec<&'static str>,
}

/// Plays the demo once. Returns whether all sums add up.
///
/// # Errors
/// Broker or database went away, or the system does not come to rest.
pub(super) async fn play(demo: Demo<'_>) -> anyhow::Result<bool> {
    let mut screen = Screen::new();
    let names = &demo.config.runtime.names;
    demo.bind_sibling(names).await?;
    let before = demo.at_rest(&mut |_| true).await.context("before the demo")?;
    let run = Uuid::now_v7().simple().to_string();
    // The end of the id is random; the beginning is the time.
    let world = World::new(&names.ingress(), &run[26..]);
    screen.say(&format!(
        "\nA sample world: 1,200 people in 60 departments from two directories, 440 orders, 500 payment callbacks, 200 SMS\n\
         requests, {} broken messages. {} messages in all go to {}.\n",
        world.broken.len(),
        world.sound.len() + world.broken.len(),
        names.ingress()
    ));
    let started = Instant::now();
    let mut published = demo.publish(&world.sound, 0, &before, &mut screen).await?;
    demo.settle(published, &before, &mut screen).await?;
    published = demo.publish(&world.broken, published, &before, &mut screen).await?;
    let after = demo.settle(published, &before, &mut screen).await?;
    let books = Books::between(&before, &after, published);
    screen.summary(&books);
    screen.say(&format!("  took {:.1} s", started.elapsed().as_secs_f64()));
    let mended = demo.story(&world, published, &before, &mut screen).await?;
    Ok(books.add_up() && mended)
}

impl Demo<'_> {
    fn sibling_queue(&self) -> String {
        format!("{}.demo.sibling", self.config.runtime.names.prefix())
    }

    /// A queue as a sibling system would have it: bound to everything we publish.
    async fn bind_sibling(&self, names: &Names) -> anyhow::Result<()> {
        let queue = self.sibling_queue();
        let topology = Topology {
            exchanges: vec![ExchangeSpec::topic(names.egress())],
            queues: vec![QueueSpec {
                name: queue.clone(),
                kind: QueueKind::Classic,
                ttl: None,
                dead_letter_to: None,
                delivery_limit: 0,
                single_active_consumer: false,
            }],
            bindings: vec![Binding { queue, exchange: names.egress(), pattern: "#".to_owned() }],
            ..Topology::default()
        };
        let refused = topology.declare_all(self.link).await?;
        if refused.is_empty() { Ok(()) } else { bail!(refused.join("; ")) }
    }

    async fn publish(
        &self,
        messages: &[Outgoing],
        published_before: usize,
        before: &Look,
        screen: &mut Screen,
    ) -> anyhow::Result<usize> {
        let mut published = published_before;
        for chunk in messages.chunks(PUBLISH_CHUNK) {
            publish_once(&self.config.broker, chunk).await.context("publishing the sample world")?;
            published += chunk.len();
            let look = self.look().await?;
            screen.live(published, &look, &Books::between(before, &look, published));
        }
        Ok(published)
    }

    /// Waits until everything that was published has come to an end.
    async fn settle(&self, published: usize, before: &Look, screen: &mut Screen) -> anyhow::Result<Look> {
        let adds_up = &mut |look: &Look| {
            let books = Books::between(before, look, published);
            screen.live(published, look, &books);
            books.add_up()
        };
        self.at_rest(adds_up).await
    }

    /// At rest: no message in our queues, nothing in the outbox, and two looks in a row the same, with sums that add up. Without
    /// them it may only be slow: what a consumer has taken and not yet ended is nowhere to be seen. So they are waited for.
    async fn at_rest(&self, adds_up: &mut (dyn FnMut(&Look) -> bool + Send)) -> anyhow::Result<Look> {
        let deadline = Instant::now() + REST_WITHIN;
        let mut last = self.look().await?;
        let mut changed = Instant::now();
        while Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
            let look = self.look().await?;
            let adds_up = adds_up(&look);
            let counts = &look.counts;
            let empty = look.waiting == 0 && look.retrying == 0 && counts.pending == 0 && counts.replaying == 0;
            let same = *counts == last.counts && look.sibling == last.sibling;
            if !same {
                changed = Instant::now();
            }
            if empty && same && (adds_up || changed.elapsed() >= LOST_AFTER) {
                return Ok(look);
            }
            last = look;
        }
        bail!("it did not come to rest within {} s: {last:?}", REST_WITHIN.as_secs())
    }

    async fn look(&self) -> anyhow::Result<Look> {
        let names = &self.config.runtime.names;
        let mut queues = vec![self.sibling_queue()];
        for consumer in &self.consumers {
            queues.extend([names.queue(consumer), names.dlq(consumer)]);
        }
        let waiting_until = queues.len();
        for consumer in &self.consumers {
            queues.extend(self.config.runtime.retry.rungs.iter().map(|rung| names.retry(consumer, *rung)));
        }
        let depths = queue_depths(self.link, &queues).await?;
        let sum = |depths: &[u32]| depths.iter().copied().map(i64::from).sum();
        let (waiting, retrying) = (sum(&depths[1..waiting_until]), sum(&depths[waiting_until..]));
        let counts = store::counts(self.pool).await?;
        Ok(Look { counts, retrying, waiting, sibling: sum(&depths[..1]) })
    }

    /// Shows the groups, mends the cause of one, replays it and looks at the books again.
    async fn story(&self, world: &World, published: usize, before: &Look, screen: &mut Screen) -> anyhow::Result<bool> {
        let groups = self.groups(&Filter::default()).await?;
        screen.groups(&groups);
        let story = Filter { reason_code: Some(STORY_REASON.to_owned()), ..Filter::default() };
        let refused: i64 = self.groups(&story).await?.iter().map(|g| g.count).sum();
        screen.say(&format!(
            "\nOne of them can be mended: {refused} departments were moved below their own children ({STORY_REASON}).\n\
             The directory's owner moves the children away first; then the refused moves make sense:"
        ));
        let published = self.publish(&world.fixes, published, before, screen).await?;
        self.settle(published, before, screen).await?;
        screen.say(&format!("\n  $ onceflow dlq replay --reason-code {STORY_REASON} --reason \"children moved away\""));
        let replayed = self.replay(story.clone()).await?;
        let after = self.settle(published, before, screen).await?;
        let left: i64 = self.groups(&story).await?.iter().map(|g| g.count).sum();
        let books = Books::between(before, &after, published);
        screen.say(&format!("  replayed {replayed}; dead again {left}"));
        screen.summary(&books);
        Ok(books.add_up() && left == 0)
    }

    async fn groups(&self, filter: &Filter) -> anyhow::Result<Vec<Group>> {
        let tx = self.pool.begin().await?;
        let groups = replay::groups(&tx, filter).await?;
        tx.rollback().await;
        Ok(groups)
    }

    async fn replay(&self, filter: Filter) -> anyhow::Result<usize> {
        let names = &self.config.runtime.names;
        let queues = self.consumers.iter().map(|c| ((*c).to_owned(), names.queue(c))).collect();
        let change = Change {
            selection: Selection::Filter(filter),
            reason: Some("children moved away".to_owned()),
            actor: "demo".to_owned(),
            dry_run: false,
            expect_count: None,
            max: None,
        };
        let tx = self.pool.begin().await?;
        let done = replay::replay(&tx, &change, &queues).await?;
        tx.commit_repeatable().await?;
        Ok(done.ids.len())
    }
}
