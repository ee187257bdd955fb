//! What a running process takes over of a configuration that was read again: who we are, whom we trust, and what is logged. Everything
//! else waits for a restart, and is named.
//!
//! A way to broker or database is taken over only where it leads to the same place: transactions of one process must not end up in
//! two databases.

use std::collections::BTreeMap;

use super::Config;
use crate::broker;

/// Keys of the ways and of the log; their content counts, not how it is given.
const TAKEN_OVER: [&str; 16] = [
    "broker.url",
    "broker.url_file",
    "broker.allow_plaintext",
    "broker.heartbeat",
    "broker.ca_file",
    "broker.certificate_file",
    "broker.key_file",
    "database.url",
    "database.url_file",
    "database.allow_plaintext",
    "database.ca_file",
    "database.certificate_file",
    "database.key_file",
    "admin.token",
    "admin.token_file",
    "log.level",
];

/// A running configuration with what could be taken over of another one.
#[derive(Debug)]
pub struct Renewed {
    /// What is to run from now on.
    pub config: Config,
    /// Keys that differ and wait for a restart, with the reason where it is not the usual one.
    pub waits: Vec<String>,
}

impl Config {
    /// Takes over what can be.
    #[must_use]
    pub fn renewed(&self, next: &Self) -> Renewed {
        let mut waits = self.differing(next);
        let mut config = self.clone();
        match self.broker_going_the_way_of(next) {
            Ok(broker) => config.broker = broker,
            Err(why) => waits.push(why.to_owned()),
        }
        match self.database.going_the_way_of(&next.database) {
            Some(database) => config.database = database,
            None => waits.push("database.url, because it leads to another database".to_owned()),
        }
        // Without a token only an address that nobody else reaches is served, and the address stays.
        if next.admin.token.is_some() || self.admin.listen.ip().is_loopback() {
            config.admin.token.clone_from(&next.admin.token);
        } else {
            waits.push("admin.token, because admin.listen needs one".to_owned());
        }
        config.log.level.clone_from(&next.log.level);
        Renewed { config, waits }
    }

    fn broker_going_the_way_of(&self, next: &Self) -> Result<broker::Settings, &'static str> {
        let (before, after) = (&self.broker, &next.broker);
        if before.address() != after.address() {
            return Err("broker.url, because it leads to another broker or virtual host");
        }
        // Copies that are under way carry the name that we had.
        if before.signs_as.is_some() && before.user() != after.user() {
            return Err("broker.url, because consumers.*.producers is set and its user is another one");
        }
        Ok(broker::Settings { declare: before.declare, signs_as: before.signs_as.clone(), ..after.clone() })
    }

    fn differing(&self, next: &Self) -> Vec<String> {
        let keys = self.given.keys().chain(next.given.keys().filter(|key| !self.given.contains_key(*key)));
        keys.filter(|key| self.given.get(*key) != next.given.get(*key)).cloned().collect()
    }
}

/// Keys whose new values are not taken over, and no secret among them.
pub(super) fn what_waits(mut given: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    given.retain(|key, _| !TAKEN_OVER.contains(&key.as_str()));
    given
}

#[cfg(test)]
mod tests {
    use std::fs;

    use secrecy::ExposeSecret as _;

    use super::super::load;
    use super::*;

    fn read(text: &str) -> Config {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("onceflow.toml");
        fs::write(&file, text).unwrap();
        load(Some(&file), &["org"]).unwrap()
    }

    fn with(broker: &str, database: &str, more: &str) -> Config {
        read(&format!("[broker]\nurl = {broker:?}\n[database]\nurl = {database:?}\n{more}"))
    }

    #[test]
    fn passwords_tokens_and_the_log_level_are_taken_over_and_everything_else_is_named_o3() {
        let before = with("amqp://u:a@localhost/v", "postgres://u:a@localhost/x", "[runtime]\nlanes = 1\n");
        let text = "[runtime]\nlanes = 2\nbatch = 7\n[log]\nlevel = \"debug\"\n[admin]\ntoken = \"0123456789abcdef\"\n";
        let after = with("amqp://w:b@localhost/v", "postgres://w:b@localhost/x", text);
        let Renewed { config, waits } = before.renewed(&after);
        assert_eq!(waits, ["runtime.lanes", "runtime.batch"]);
        assert_eq!((config.runtime.lanes, config.runtime.batch), (1, before.runtime.batch));
        assert_eq!(config.broker.url.expose_secret(), "amqp://w:b@localhost/v");
        assert!(config.database.is_same_way(&after.database) && !config.database.is_same_way(&before.database));
        assert_eq!((config.log.level.as_str(), config.admin.token.is_some()), ("debug", true));
        // What waits is still named the next time.
        assert_eq!(config.renewed(&after).waits, ["runtime.lanes", "runtime.batch"]);
        assert!(config.renewed(&before).waits.is_empty());
    }

    #[test]
    fn a_way_that_leads_elsewhere_waits_for_a_restart() {
        let before = with("amqp://u:a@localhost/v", "postgres://u:a@localhost/x", "");
        for (broker, database, named) in [
            ("amqp://u:a@localhost/w", "postgres://u:b@localhost/x", "broker.url"),
            ("amqp://u:a@localhost:7/v", "postgres://u:b@localhost/x", "broker.url"),
            ("amqp://u:b@localhost/v", "postgres://u:a@localhost/y", "database.url"),
            ("amqp://u:b@localhost/v", "postgres://u:a@127.0.0.1/x", "database.url"),
        ] {
            let Renewed { config, waits } = before.renewed(&with(broker, database, ""));
            assert!(waits.len() == 1 && waits[0].starts_with(named), "{waits:?}");
            let kept = (config.broker.is_same_way(&before.broker), config.database.is_same_way(&before.database));
            assert_eq!(kept, (named == "broker.url", named == "database.url"), "the other one is taken over");
        }
    }

    #[test]
    fn the_token_stays_where_others_could_reach_the_api_without_it() {
        let ways = ("amqp://u:a@localhost/v", "postgres://u:a@localhost/x");
        let open = with(ways.0, ways.1, "[admin]\nlisten = \"0.0.0.0:1\"\ntoken = \"0123456789abcdef\"\n");
        let Renewed { config, waits } = open.renewed(&with(ways.0, ways.1, "[admin]\nlisten = \"127.0.0.1:1\"\n"));
        assert!(config.admin.token.is_some());
        assert!(waits.iter().any(|key| key.starts_with("admin.token,")), "{waits:?}");
    }

    #[test]
    fn the_user_whose_name_stands_on_our_copies_stays_until_a_restart_s7_14() {
        let (database, producers) = ("postgres://u:a@localhost/x", "[consumers.org]\nproducers = [\"hr\"]\n");
        let before = with("amqp://u:a@localhost/v", database, producers);
        assert_eq!(before.broker.signs_as.as_deref(), Some("u"));
        assert!(before.renewed(&with("amqp://u:b@localhost/v", database, producers)).waits.is_empty());
        let Renewed { config, waits } = before.renewed(&with("amqp://w:b@localhost/v", database, producers));
        assert!(config.broker.is_same_way(&before.broker) && waits[0].contains("producers is set"), "{waits:?}");
    }
}
