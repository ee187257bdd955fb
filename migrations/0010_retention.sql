-- Closed dead letters are removed by the time of their closing.
create index dead_letter_closed on onceflow.dead_letter (closed_at) where closed_at is not null;
-- Failed attempts by their time.
create index attempt_at on onceflow.attempt (at);
