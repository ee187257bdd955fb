//! What can still be said of a message that can't be decoded, for its dead letter.

use std::borrow::Cow;
use std::fmt::Write as _;

use aws_lc_rs::digest;

use super::attributes::{is_clean, known_name, scalar_text};
use crate::message::Message;

/// The identity `(source, id)` under which an unreadable message is kept.
///
/// Its own id where it has a usable one, else the hash of its body: two different messages must never be taken for one,
/// because the second would only be counted and its payload lost.
pub fn identity_of_unreadable(message: &Message) -> (String, String) {
    let source = attribute_of_unreadable(message, "source").unwrap_or_default();
    let own = message.message_id.clone().filter(|id| !id.is_empty() && is_clean("id", id));
    let id = own.or_else(|| attribute_of_unreadable(message, "id")).unwrap_or_else(|| body_hash(message));
    (source, id)
}

/// One attribute out of the headers or the AMQP properties, where it is usable: `tenant`, `type`, `subject`, ….
pub fn attribute_of_unreadable(message: &Message, name: &str) -> Option<String> {
    let in_headers = message.headers.look().find(|(header, _)| known_name(header) == Some(name));
    let text = in_headers.and_then(|(_, value)| scalar_text(name, value).ok()).filter(|t| !t.is_empty());
    let property = match name {
        "id" => message.message_id.clone(),
        "type" => message.message_type.clone(),
        "correlationid" => message.correlation_id.clone(),
        _ => None,
    };
    text.map(Cow::into_owned).or(property).filter(|t| !t.is_empty() && is_clean(name, t))
}

fn body_hash(message: &Message) -> String {
    let hash = digest::digest(&digest::SHA256, &message.body);
    hash.as_ref().iter().fold(String::from("sha256:"), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
