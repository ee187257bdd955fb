//! Whose messages a consumer takes: the broker's word for who sent each of them.
//!
//! RabbitMQ takes a message with the property `user_id` only over a connection of that very user, so the name proves the sender,
//! whichever way the message came. What we publish ourselves, such as retries, replays and what waited for its turn, carries our own
//! user's name in the producer's place. That alone makes a copy of ours one: a producer that can write to our queues directly, and
//! forges the headers of a retry, still can't forge the name.

use std::collections::BTreeSet;

use crate::event::Rejection;
use crate::message::Message;

/// Users of the broker whose messages a consumer takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producers {
    consumer: String,
    users: BTreeSet<String>,
}

impl Producers {
    /// Those that are listed for the consumer, and the user that we log in as.
    pub fn new(consumer: &str, listed: Vec<String>, ours: String) -> Self {
        Self { consumer: consumer.to_owned(), users: listed.into_iter().chain([ours]).collect() }
    }

    pub(super) fn check(&self, message: &Message) -> Result<(), Rejection> {
        let consumer = &self.consumer;
        match message.user_id.as_deref().filter(|user| !user.is_empty()) {
            Some(user) if self.users.contains(user) => Ok(()),
            Some(user) => {
                let text = format!(
                    "the message is from the broker's user {user:?}, which consumers.{consumer}.producers does not list"
                );
                Err(Rejection::invalid("unlisted_producer", text))
            }
            None => {
                let text = format!(
                    "nothing proves who sent the message, and consumers.{consumer}.producers asks for it: its producer must set the \
                     AMQP property user_id to its own user of the broker"
                );
                Err(Rejection::invalid("unproven_producer", text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_from_listed_users_and_ourselves_and_from_nobody_else_s7_14() {
        let producers = Producers::new("org", vec!["hr".to_owned()], "onceflow-run".to_owned());
        let from = |user: Option<&str>| {
            let message = Message { user_id: user.map(str::to_owned), ..Message::default() };
            producers.check(&message).map_err(|rejection| (rejection.stage.as_str(), rejection.code))
        };
        assert_eq!((from(Some("hr")), from(Some("onceflow-run"))), (Ok(()), Ok(())));
        assert_eq!(from(Some("shop")), Err(("validate", "unlisted_producer")));
        assert_eq!(from(Some("HR")), Err(("validate", "unlisted_producer")));
        assert_eq!(from(None), Err(("validate", "unproven_producer")));
        assert_eq!(from(Some("")), Err(("validate", "unproven_producer")));
    }
}
