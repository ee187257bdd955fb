//! RabbitMQ: connections under our own supervision, publishing with confirms, consuming, declaring. The only user of the AMQP client.

mod acks;
mod consume;
mod convert;
mod declare;
mod error;
mod intake;
mod link;
mod publish;
mod rearrange;
mod settings;

pub use acks::acknowledge;
pub use consume::{Delivery, Subscription, queue_depths};
pub use declare::{Binding, ExchangeBinding, ExchangeSpec, QueueKind, QueueSpec, Topology};
pub use error::BrokerError;
pub use intake::{Intake, Resize};
pub use link::{Link, Purpose, knock};
pub(crate) use publish::REPLAY_ID;
pub use publish::{Fate, Outgoing, PublishError, Publisher, publish_once};
pub use rearrange::{QueueState, delete_exchange, delete_queues, queue_states, unbind};
pub use settings::{Settings, SettingsError};
