//! `onceflow events publish`: validates here, publishes with confirm and mandatory straight to the broker.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::Rows;
use super::find::read_type;
use super::message::{Attributes, Encoding, Form, build, not_json, set};
use crate::broker::{Outgoing, PublishError, publish_once};
use crate::clock;
use crate::config::Config;
use crate::event::Format;
use crate::message::Route;
use crate::runtime::wire::decode;
use crate::runtime::{AnyConsumer, EventType};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow events publish org.user.upserted.v1                     the sample
  onceflow events publish org.user.upserted.v1 --set displayName=Ada --id hr-4711
  onceflow events publish sms.requested.v1 -f request.json --form structured --format protobuf
  generate | onceflow events publish order.placed.v1 -f -
  onceflow events publish org.user.upserted.v1 --id hr-4711 --repeat 5   the same event: applied once";

/// Most bytes that are read from a file or from stdin; the broker's own limit is far below.
const MAX_INPUT: u64 = 64 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Event type, as `events types` lists it
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// JSON payload from a file, or - for stdin [default: the sample]
    #[arg(short, long, value_name = "FILE|-")]
    file: Option<String>,
    /// Change a field of the payload; JSON where it is JSON, text otherwise
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Event id [default: a new one each]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Who says so; with the id the identity of the event
    #[arg(long, value_name = "SOURCE", default_value = "onceflow-cli")]
    source: String,
    /// The entity, e.g. user/42
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Ordering key [default: the subject]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Whose data
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// How the attributes travel; plain carries only id, type, time and ordering key
    #[arg(long, value_enum, default_value = "binary")]
    form: Form,
    /// How the payload is written
    #[arg(long, value_enum, default_value = "json")]
    format: Encoding,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// Send it as it is, also when no consumer could read it
    #[arg(long)]
    no_validate: bool,
}

#[derive(Debug, Serialize)]
struct Published {
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    exchange: String,
    routing_key: String,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let (consumer, found) = read_type(&args.event_type)?;
    let body = body(args, &found)?;
    let config = context.load_config()?;
    let messages = messages(args, &config, &body)?;
    if let (Some(first), false) = (messages.first(), args.no_validate) {
        validate(first, consumer.as_ref(), &config)?;
    }
    publish(&config, &messages, context.timeout).await?;
    let published = Published { items: messages.iter().map(item).collect() };
    context.out.data("onceflow.events.publish/1", &published, || table(&published))?;
    context.out.say(&format!("{} confirmed by the broker and routed to a queue", messages.len()));
    Ok(Exit::Ok)
}

/// The payload's bytes in the wanted encoding.
fn body(args: &Args, found: &EventType) -> Result<Vec<u8>, Failure> {
    let text = match args.file.as_deref() {
        None => found.sample.to_owned(),
        Some("-") => read("stdin", std::io::stdin().lock())?,
        Some(path) => {
            let file =
                File::open(path).map_err(|e| Failure::new(Exit::Usage, format!("can't read {path}")).because(e))?;
            read(path, file)?
        }
    };
    let text = assigned(text, args)?;
    match (args.format, found.to_protobuf) {
        (Encoding::Json, _) => Ok(text.into_bytes()),
        (Encoding::Protobuf, Some(encode)) => {
            let wrong = |e| Failure::new(Exit::Usage, format!("the payload is no {}", found.message)).because(e);
            encode(&text).map_err(wrong)
        }
        (Encoding::Protobuf, None) => {
            Err(Failure::new(Exit::Usage, format!("{} can't be written as protobuf here", found.name)))
        }
    }
}

/// The text as it is, so that a broken payload can be sent on purpose; parsed only where a field is changed.
fn assigned(text: String, args: &Args) -> Result<String, Failure> {
    if args.set.is_empty() && (args.no_validate || serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok())
    {
        return Ok(text);
    }
    let mut payload: Value = serde_json::from_str(&text).map_err(|e| not_json(&e))?;
    for assignment in &args.set {
        set(&mut payload, assignment)?;
    }
    Ok(payload.to_string())
}

fn read(name: &str, input: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = input.take(MAX_INPUT).read_to_string(&mut text);
    read.map_err(|e| Failure::new(Exit::Usage, format!("can't read {name}")).because(e))?;
    Ok(text)
}

fn messages(args: &Args, config: &Config, body: &[u8]) -> Result<Vec<Outgoing>, Failure> {
    let format = Format::from(args.format);
    let now = clock::now();
    let route = Route { exchange: config.runtime.names.ingress(), routing_key: args.event_type.clone() };
    let one = |_| {
        let id = args.id.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        let attributes = Attributes {
            id: &id,
            event_type: &args.event_type,
            source: &args.source,
            subject: args.subject.as_deref(),
            key: args.key.as_deref(),
            tenant: args.tenant.as_deref(),
            time: now,
        };
        let message = build(&attributes, args.form, format, body.to_vec())?;
        Ok(Outgoing { route: route.clone(), message })
    };
    (0..args.repeat).map(one).collect()
}

/// Reads the message as the consumer will, so that a mistake is told here and not found among the dead letters.
fn validate(outgoing: &Outgoing, consumer: &dyn AnyConsumer, config: &Config) -> Result<(), Failure> {
    let read = decode(&outgoing.message, &config.runtime.limits).and_then(|envelope| consumer.decode(&envelope));
    match read {
        Ok(_) => Ok(()),
        Err(rejection) => {
            let what = format!("{} would refuse this event ({})", consumer.name(), rejection.code);
            let remedy = "onceflow events sample TYPE shows a valid one; --no-validate sends it anyway";
            Err(Failure::new(Exit::Usage, what).because(rejection).or_try(remedy))
        }
    }
}

async fn publish(config: &Config, messages: &[Outgoing], within: Duration) -> Result<(), Failure> {
    let address = config.broker.address();
    match tokio::time::timeout(within, publish_once(&config.broker, messages)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(PublishError::Broker(error))) if error.is_not_found() => {
            Err(Failure::new(Exit::NotFound, format!("exchange {:?} does not exist", config.runtime.names.ingress()))
                .because(error)
                .or_try("start `onceflow run` once: it declares it"))
        }
        Ok(Err(PublishError::Broker(error))) => {
            Err(Failure::new(Exit::Unreachable, format!("can't publish to the broker at {address}"))
                .because(error)
                .or_try("ONCEFLOW_AMQP_URL, or `onceflow check`"))
        }
        Ok(Err(error @ (PublishError::Returned(_) | PublishError::Nacked))) => {
            Err(Failure::new(Exit::Failed, "the event was not taken")
                .because(error)
                .or_try("start `onceflow run` once: it declares and binds the queues"))
        }
        Err(_) => Err(Failure::new(Exit::TimedOut, format!("no confirm from {address} within {within:?}"))
            .because("the broker is silent or blocked; the event may have been taken")
            .or_try("the same command with --id: a second copy has no effect")),
    }
}

fn item(outgoing: &Outgoing) -> Item {
    Item {
        id: outgoing.message.message_id.clone().unwrap_or_default(),
        event_type: outgoing.message.message_type.clone().unwrap_or_default(),
        exchange: outgoing.route.exchange.clone(),
        routing_key: outgoing.route.routing_key.clone(),
    }
}

fn table(published: &Published) -> Rows {
    let mut rows = Rows::new(&["ID", "TYPE", "EXCHANGE"]);
    for item in &published.items {
        rows.push(vec![item.id.clone(), item.event_type.clone(), item.exchange.clone()]);
    }
    rows
}
