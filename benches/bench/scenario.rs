//! The scenarios: what is sent to whom, how much of it, and which figures are compared.

use crate::args::{Args, Domain};
use crate::contender::{Contender, Setup};
use crate::events::{Feed, Mix};
use crate::judge::{self, Judge};
use crate::measure::{Load, Plan};
use crate::triage::Triage;

/// Small events are of this size.
const SMALL: usize = 300;
const LARGE: usize = 4_096;
/// Seconds of a steady load that don't count.
const WARM_UP_SECONDS: f64 = 2.0;

/// One line of `--list`.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) variants: Vec<Variant>,
    pub(crate) judge: Judge,
    /// Too long for several rounds.
    pub(crate) once: bool,
}

/// What runs once in every round.
#[derive(Clone)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) contender: Contender,
    pub(crate) work: Work,
}

impl Variant {
    pub(crate) fn plan(&self) -> Option<&Plan> {
        match &self.work {
            Work::Measure(plan) => Some(plan),
            Work::Idle(..) | Work::Triage(_) => None,
        }
    }
}

#[derive(Clone)]
pub(crate) enum Work {
    Measure(Plan),
    Idle(Setup, f64),
    Triage(Triage),
}

/// How much of everything.
#[derive(Clone, Copy)]
struct Sizes {
    scale: f64,
    full: bool,
    seed: u64,
}

impl Sizes {
    /// An even number, large enough to mean something.
    fn events(self, count: u64) -> u64 {
        (((count as f64 * self.scale) as u64).max(400)) / 2 * 2
    }

    fn seconds(self, seconds: f64) -> f64 {
        (seconds * self.scale).max(2.0)
    }

    /// The size with `--full`, else what fits a run of twenty minutes.
    fn long(self, full: u64, usual: u64) -> u64 {
        self.events(if self.full { full } else { usual })
    }
}

/// Every scenario with its sizes.
pub(crate) fn all(args: &Args) -> Vec<Scenario> {
    let sizes = Sizes { scale: args.scale, full: args.full, seed: args.seed };
    let mut all = drains(sizes);
    all.extend(steady(sizes));
    all.extend(odd(sizes));
    all.extend(long(sizes));
    all
}

fn drains(sizes: Sizes) -> Vec<Scenario> {
    let org = plan(sizes, Domain::Org, 40_000);
    let classic = Plan { setup: Setup { quorum: false, ..org.setup }, ..org.clone() };
    let large = with(&org, |feed| (feed.count, feed.body_bytes) = (sizes.events(15_000), LARGE));
    let protobuf = with(&org, |feed| feed.protobuf = true);
    let duplicates = with(&org, |feed| feed.mix = Mix::Duplicates);
    let warm_up = 1_000.min(org.feed.count / 4);
    let flood = Plan { load: Load::Flood { warm_up }, ..org.clone() };
    let slow = with(&org, |feed| feed.count = sizes.events(6_000));
    let mut drain_org = both(&org);
    drain_org.push(variant("naive", Contender::Naive, &slow));
    let quorum = |name, about, variants, judge| Scenario { name, about, variants, judge, once: false };
    vec![
        quorum("drain-org", "a backlog of users, 300 B, JSON, quorum queue", drain_org, judge::throughput_org),
        quorum("drain-org-classic", "the same on a classic queue", both(&classic), judge::throughput_org),
        quorum("drain-org-4k", "the same with events of 4 KB", both(&large), judge::throughput_org),
        quorum("drain-org-protobuf", "the same in protobuf", both(&protobuf), judge::throughput_org),
        quorum("drain-org-duplicates", "the same, a tenth are repetitions", both(&duplicates), judge::throughput_org),
        quorum(
            "flood-org",
            "the publisher at full speed while users are consumed",
            both(&flood),
            judge::throughput_org,
        ),
        quorum(
            "drain-payment",
            "a backlog of orders and the callbacks that pay them",
            both(&plan(sizes, Domain::Payment, 30_000)),
            judge::throughput_payment,
        ),
        quorum(
            "drain-sms",
            "a backlog of requests for one-time passwords",
            both(&plan(sizes, Domain::Sms, 30_000)),
            judge::throughput,
        ),
    ]
}

fn steady(sizes: Sizes) -> Vec<Scenario> {
    let thousand = at_rate(&plan(sizes, Domain::Org, 0), 1_000, sizes.seconds(10.0));
    let classic = Plan { setup: Setup { quorum: false, ..thousand.setup }, ..thousand.clone() };
    let five = at_rate(&thousand, 5_000, sizes.seconds(8.0));
    let mut with_naive = both(&thousand);
    with_naive.push(variant("naive", Contender::Naive, &thousand));
    let one = |name, about, variants, judge| Scenario { name, about, variants, judge, once: false };
    vec![
        one("steady-1000", "1,000 users a second, 300 B, quorum queue", with_naive, judge::latency_1000),
        one("steady-1000-classic", "the same on a classic queue", both(&classic), judge::latency_1000),
        one("steady-5000", "5,000 users a second, quorum queue", both(&five), judge::latency),
    ]
}

fn odd(sizes: Sizes) -> Vec<Scenario> {
    let clean = plan(sizes, Domain::Org, 20_000);
    let poison = with(&clean, |feed| feed.mix = Mix::Poison);
    // At 1,000 a second this machine is busy to 95 %, and a hot key's latency that of waiting for a processor.
    let even = at_rate(&clean, 500, sizes.seconds(10.0));
    let hot = with(&even, |feed| feed.mix = Mix::HotKey);
    let long = with(&clean, |feed| feed.count = sizes.events(60_000));
    let partitioned = Plan { setup: Setup { partitions: 4, ..long.setup }, settling: 0.3, ..long };
    let replicas = [("1 replica", 1), ("2 replicas", 2), ("3 replicas", 3), ("4 replicas", 4)];
    let replicas = replicas.map(|(name, replicas)| ours(name, &Plan { replicas, ..partitioned.clone() }));
    let one = |name, about, variants, judge| Scenario { name, about, variants, judge, once: false };
    vec![
        one(
            "poison",
            "a backlog of which 1 % can't be read, against a clean one",
            vec![ours("clean", &clean), ours("poison", &poison)],
            judge::poison,
        ),
        one(
            "hot-key",
            "500 a second, 90 % about one user: the others' latency, against an even load",
            vec![ours("even", &even), ours("hot", &hot)],
            judge::hot_key,
        ),
        one("replicas", "a backlog on 4 partitioned queues, 1 to 4 processes", replicas.to_vec(), judge::replicas),
    ]
}

fn long(sizes: Sizes) -> Vec<Scenario> {
    let backlog = plan(sizes, Domain::Org, if sizes.full { 1_000_000 } else { 200_000 });
    let empty = plan(sizes, Domain::Org, 30_000);
    let filled = Plan { inbox_rows: sizes.long(10_000_000, 1_000_000), ..empty.clone() };
    let before = sizes.seconds(10.0);
    let held = sizes.seconds(if sizes.full { 600.0 } else { 30.0 });
    let open = at_rate(&empty, 1_000, before + held);
    let hold_after = Some(((before + warm_up_seconds(before)) * 1_000.0) as u64);
    let open = Plan { hold_after, ..open };
    let letters = sizes.long(1_000_000, 200_000);
    let live = |seconds| at_rate(&empty, 300, seconds);
    let triage = Triage::new(live, before, letters, sizes.long(100_000, 10_000));
    let idle = Work::Idle(empty.setup, sizes.seconds(20.0));
    let idle = Variant { name: "onceflow", contender: Contender::Onceflow, work: idle };
    vec![
        Scenario {
            name: "backlog",
            about: "a long backlog: memory over time",
            variants: vec![ours("onceflow", &backlog)],
            judge: judge::backlog,
            once: true,
        },
        Scenario {
            name: "inbox",
            about: "a drain with a full inbox, against an empty one",
            variants: vec![ours("empty", &empty), ours("full", &filled)],
            judge: judge::inbox,
            once: false,
        },
        Scenario {
            name: "open-transaction",
            about: "1,000 a second while another session holds a transaction open, against the time before",
            variants: vec![ours("onceflow", &open)],
            judge: judge::open_transaction,
            once: true,
        },
        Scenario {
            name: "dead-letters",
            about: "an operator's looks at many dead letters, and a replay beside 300 live users a second",
            variants: vec![Variant { name: "onceflow", contender: Contender::Onceflow, work: Work::Triage(triage) }],
            judge: judge::dead_letters,
            once: true,
        },
        Scenario {
            name: "idle",
            about: "processor time with nothing to do",
            variants: vec![idle],
            judge: judge::idle,
            once: true,
        },
    ]
}

fn plan(sizes: Sizes, domain: Domain, count: u64) -> Plan {
    let feed = Feed {
        domain,
        count: sizes.events(count),
        body_bytes: SMALL,
        protobuf: false,
        mix: Mix::Plain,
        seed: sizes.seed,
    };
    let setup = Setup { domain, quorum: true, partitions: 1, admin_port: 0 };
    Plan { setup, feed, load: Load::Drain, replicas: 1, settling: 0.0, inbox_rows: 0, hold_after: None }
}

fn with(plan: &Plan, change: impl FnOnce(&mut Feed)) -> Plan {
    let mut plan = plan.clone();
    change(&mut plan.feed);
    plan
}

fn warm_up_seconds(seconds: f64) -> f64 {
    WARM_UP_SECONDS.min(seconds)
}

fn at_rate(plan: &Plan, rate: u64, seconds: f64) -> Plan {
    let warm_up = (warm_up_seconds(seconds) * rate as f64) as u64;
    let count = warm_up + (seconds * rate as f64) as u64;
    Plan { load: Load::Steady { rate, warm_up }, ..with(plan, |feed| feed.count = count) }
}

fn variant(name: &'static str, contender: Contender, plan: &Plan) -> Variant {
    Variant { name, contender, work: Work::Measure(plan.clone()) }
}

fn ours(name: &'static str, plan: &Plan) -> Variant {
    variant(name, Contender::Onceflow, plan)
}

fn both(plan: &Plan) -> Vec<Variant> {
    vec![variant("limit", Contender::Limit, plan), ours("onceflow", plan)]
}
