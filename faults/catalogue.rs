//! Every fault that we know of, and who injects it: this suite, a test of `make test`, or nobody yet, with the reason.
//!
//! Plain data, read by the suite and by `tests/it/catalogue.rs`, which holds it against both.

/// Who injects a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// This suite.
    Suite,
    /// A test function of `make test`.
    Test(&'static str),
    /// Nobody yet, and why.
    Nobody(&'static str),
}

/// One line of the catalogue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) by: By,
}

const fn suite(id: &'static str, title: &'static str) -> Entry {
    Entry { id, title, by: By::Suite }
}

const fn test(id: &'static str, title: &'static str, name: &'static str) -> Entry {
    Entry { id, title, by: By::Test(name) }
}

const fn nobody(id: &'static str, title: &'static str, why: &'static str) -> Entry {
    Entry { id, title, by: By::Nobody(why) }
}

const NOT_BUILT: &str = "the product has no such part";

/// The whole catalogue.
pub(crate) const CATALOGUE: [Entry; 93] = [
    suite("P1", "dies after delivery, before BEGIN"),
    suite("P2", "dies in the transaction"),
    suite("P3", "dies with COMMIT sent and its answer unread"),
    suite("P4", "dies after COMMIT, before the ack"),
    suite("P5", "dies with the ack not on the wire"),
    suite("P6", "relay dies holding rows"),
    suite("P7", "relay dies after publishing, before the confirm"),
    suite("P8", "relay dies after the confirm, before the row is removed"),
    suite("P9", "dies between publish-to-retry and ack"),
    suite("P10", "dies in dead-lettering"),
    nobody("P11", "dies in a batch of a full sync", NOT_BUILT),
    suite("P12", "dies in a migration; four migrate at once"),
    suite("P13", "holder of leases killed"),
    suite("P14", "holder of leases frozen for longer than they last"),
    suite("P15", "SIGTERM under load"),
    suite("P16", "drain limit exceeded; second SIGTERM"),
    test("P17", "handler panics", "i6_a_bad_event_harms_neither_its_batch_mates_nor_the_process_p17_p18"),
    test("P18", "handler hangs for ever", "i6_a_bad_event_harms_neither_its_batch_mates_nor_the_process_p17_p18"),
    test(
        "P19",
        "memory cap and large payloads",
        "i8_a_drain_of_large_messages_on_a_database_that_is_held_stays_within_its_memory",
    ),
    suite("P20", "nobody reads the log"),
    suite("P21", "dies again and again with the same messages"),
    suite("B1", "connections closed by an operator"),
    suite("B2", "stopped and started"),
    suite("B3", "killed and started"),
    suite("B4", "cluster of three: leader killed, minority, rolling restart"),
    suite("B5", "memory alarm"),
    suite("B6", "disk alarm"),
    suite("B7", "queue deleted under its consumer"),
    suite("B8", "exchange missing"),
    suite("B9", "binding removed"),
    suite("B10", "queue exists with other arguments"),
    suite("B11", "target full"),
    suite("B12", "queue of dead letters missing"),
    suite("B13", "message over the broker's largest size"),
    suite("B14", "consumer timeout"),
    suite("B15", "delivery limit reached"),
    suite("B16", "permissions revoked"),
    suite("B17", "limits of the account"),
    suite("B18", "fifty retries of one event"),
    nobody(
        "B19",
        "queue purged by an operator",
        "seen only by comparing with the source, which the product has no part for",
    ),
    suite("B20", "more than the broker or the service can take"),
    suite("B21", "single active consumer killed"),
    suite("N1", "links cut, idle and under load"),
    suite("N2", "half-open: frozen both ways"),
    suite("N3", "frozen one way only"),
    suite("N4", "latency with jitter"),
    suite("N5", "dripping link"),
    suite("N6", "reset in mid-frame; garbage"),
    suite("N7", "accepted, then silence"),
    suite("N8", "flapping link"),
    suite("N9", "broker there, database away"),
    suite("N10", "database there, broker away"),
    suite("N11", "one replica loses the database with its leases"),
    test(
        "N12",
        "TLS: expired, wrong host, unknown authority",
        "a_database_is_believed_only_by_our_authority_under_its_name_and_within_its_dates_n12_s7_2",
    ),
    suite("D1", "server crashes under load"),
    suite("D2", "sessions terminated at random"),
    test(
        "D3",
        "answer to COMMIT cut",
        "i2_a_commit_whose_answer_is_lost_is_recognised_and_not_counted_as_a_duplicate_d3",
    ),
    suite("D4", "deadlocks"),
    suite("D5", "locks, statement timeouts, idle transactions"),
    suite("D6", "pool exhausted"),
    suite("D7", "too many connections"),
    suite("D8", "read-only server, promoted standby"),
    suite("D9", "disk full"),
    suite("D10", "schema changes under cached statements"),
    test("D11", "error swallowed, then COMMIT", "i3_after_a_swallowed_error_the_last_statement_is_not_even_sent_d11"),
    test("D12", "task cancelled in mid-query", "i6_a_bad_event_harms_neither_its_batch_mates_nor_the_process_p17_p18"),
    test("D13", "state of a session leaks", "d13_nothing_of_a_session_reaches_the_next_user_of_its_connection"),
    suite("D14", "outbox rows become visible out of order"),
    suite("D15", "long transaction"),
    suite("E1", "a hundred copies on two replicas"),
    suite("E2", "shuffled and stale versions"),
    test("E3", "the same id with another body", "e3_the_same_id_with_another_body_is_flagged_and_the_first_one_stands"),
    suite("E4", "no message id"),
    suite("E5", "what can't be read"),
    suite("E6", "nested too deep"),
    test("E7", "nested too deep where the decoder does not look", "e06_e07_deep_json_is_rejected_in_every_form"),
    suite("E8", "odd numbers and texts"),
    suite("E9", "too large"),
    suite("E10", "forged headers"),
    test("E11", "parent missing, cycles", "d6_a_move_that_would_close_a_cycle_is_refused_with_a_clear_reason"),
    test(
        "E12",
        "payments that contradict",
        "p04_a_callback_that_contradicts_its_order_puts_it_under_review_and_pays_nothing",
    ),
    suite("E13", "hostile texts in every field"),
    suite("T1", "wall clock an hour off"),
    nobody("T2", "clock set back under an id generator", NOT_BUILT),
    nobody("T3", "skew between replicas for scheduled jobs", NOT_BUILT),
    suite("C1", "two replicas on one key, two relays"),
    nobody("C2", "more buyers than stock", NOT_BUILT),
    test("C3", "the same replay twice, while consuming", "the_same_replay_twice_sends_once_c3"),
    nobody("C4", "old and new version together", "there is one version so far"),
    suite("C5", "hot key"),
    test("O1", "API during an outage", "live_never_asks_the_database_and_everything_else_says_so_within_a_second_o1"),
    suite("O2", "slow and many clients at the API"),
    test("O3", "reload with a bad configuration", "a_bad_configuration_is_not_taken_over_and_the_error_is_shown_o3"),
];
