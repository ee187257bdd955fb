//! The sample world: made from a seed, no personal data, a different set of ids at each run so that runs can share a database.

mod broken;
mod org;
mod payment;
mod sms;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::broker::Outgoing;
use crate::message::{Message, Route};

/// Same seed, same world.
const SEED: u64 = 20_261_121;

/// Messages in the order in which they are published.
#[derive(Debug)]
pub(super) struct World {
    /// What a healthy company sends: late, doubled and shuffled as real sources do.
    pub(super) sound: Vec<Outgoing>,
    /// What can't work, of different kinds. Some need the sound part to be there.
    pub(super) broken: Vec<Outgoing>,
    /// What puts the cycles right, so that their replay works.
    pub(super) fixes: Vec<Outgoing>,
}

/// How a message is made in this world.
#[derive(Debug, Clone)]
pub(super) struct Maker {
    ingress: String,
    run: String,
}

impl Maker {
    /// An event in the plain form: message id, type and a JSON body.
    pub(super) fn plain(&self, event_type: &str, id: &str, body: &Value) -> Outgoing {
        self.raw(event_type, Some(self.id(id)), body.to_string().into_bytes())
    }

    pub(super) fn raw(&self, event_type: &str, id: Option<String>, body: Vec<u8>) -> Outgoing {
        let message = Message {
            message_id: id,
            message_type: Some(event_type.to_owned()),
            content_type: Some("application/json".to_owned()),
            body: body.into(),
            ..Message::default()
        };
        Outgoing { route: Route { exchange: self.ingress.clone(), routing_key: event_type.to_owned() }, message }
    }

    /// An event whose ordering key is `subject`.
    pub(super) fn about(&self, event_type: &str, id: &str, subject: &str, body: &Value) -> Outgoing {
        let mut outgoing = self.plain(event_type, id, body);
        let headers = [
            ("cloudEvents:specversion", "1.0".to_owned()),
            ("cloudEvents:source", "demo".to_owned()),
            ("cloudEvents:subject", subject.to_owned()),
        ];
        outgoing.message.headers.extend(headers.map(|(key, value)| (key.to_owned(), Value::from(value))));
        outgoing
    }

    /// An id that no other run uses.
    pub(super) fn id(&self, id: &str) -> String {
        format!("{}-{id}", self.run)
    }
}

impl World {
    /// Makes the world of one run.
    pub(super) fn new(ingress: &str, run: &str) -> Self {
        let maker = Maker { ingress: ingress.to_owned(), run: run.to_owned() };
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut sound = org::events(&maker, &mut rng);
        sound.extend(payment::events(&maker, &mut rng));
        sound.extend(sms::events(&maker));
        Self { sound, broken: broken::events(&maker), fixes: broken::fixes(&maker) }
    }
}
