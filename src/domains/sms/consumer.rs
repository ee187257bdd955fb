//! Reads `sms.requested.v1`, set by set: look up, judge, store, tell.

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;

use super::event::SmsRequest;
use super::invariants_store::INVARIANTS;
use super::model::{Accepted, Refusal, judge};
use super::personal_store::PERSONAL;
use super::store::{self, AcceptedColumns, Key, RequestRow};
use super::{fingerprint, proto};
use crate::db::Tx;
use crate::event::{Downstream, Envelope, Rejection};
use crate::runtime::{Consumer, EventType, HandleError, Invariant, Outcome, PersonalData, Received, Skip};

/// The net below the request id: the same text for the same number so soon again is a producer that forgot its id. Two
/// replicas that read them in the same instant may let both through.
const CONTENT_WINDOW: SignedDuration = SignedDuration::from_secs(30);

/// The consumer `sms`.
#[derive(Debug, Default)]
pub(crate) struct Sms;

type Event = Received<SmsRequest>;
type Verdict = Result<Accepted, Refusal>;

#[async_trait]
impl Consumer for Sms {
    type Event = SmsRequest;

    const NAME: &'static str = "sms";
    const BINDINGS: &'static [&'static str] = &["sms.#"];
    const READS: &'static [EventType] = &[EventType {
        name: "sms.requested.v1",
        summary: "Send one text message, from a template, to one number",
        message: "onceflow.sms.v1.SmsRequested",
        sample: include_str!("../../../samples/sms/requested.json"),
        to_protobuf: Some(|json| Ok(serde_json::from_str::<proto::SmsRequested>(json)?.encode_to_vec())),
    }];
    const PUBLISHES: &'static [EventType] = &[
        published("sms.accepted.v1", "A request is valid and stored", "onceflow.sms.v1.SmsAccepted"),
        published("sms.rejected.v1", "A request breaks a rule and is not sent", "onceflow.sms.v1.SmsRejected"),
    ];
    const INVARIANTS: &'static [Invariant] = INVARIANTS;
    const PERSONAL: &'static [PersonalData] = PERSONAL;

    fn decode(&self, envelope: &Envelope) -> Result<SmsRequest, Rejection> {
        SmsRequest::read(envelope)
    }

    async fn handle_one(&self, tx: &Tx, event: &Event) -> Result<Outcome, HandleError> {
        let outcomes = self.handle(tx, std::slice::from_ref(event)).await?;
        outcomes.into_iter().next().ok_or_else(|| Rejection::refused("no_outcome", "the batch of one was empty").into())
    }

    async fn handle(&self, tx: &Tx, events: &[Event]) -> Result<Vec<Outcome>, HandleError> {
        let mut known = store::fingerprints(tx, &events.iter().map(key).collect::<Vec<_>>()).await?;
        let fresh = first_of_each(events, &known);
        let verdicts = decide(tx, &fresh).await?;
        let mut rows: Vec<_> = fresh.iter().map(|event| row(event, &verdicts[&key(event)])).collect();
        let stored = store::insert(tx, &mut rows).await?;
        let lost: Vec<_> = rows.into_iter().map(|row| row.key).filter(|key| !stored.contains(key)).collect();
        if !lost.is_empty() {
            // Another replica stored them in this instant; it has committed, or we would still be waiting.
            known.extend(store::fingerprints(tx, &lost).await?);
        }
        let mut outcomes = Vec::with_capacity(events.len());
        for event in events {
            let key = key(event);
            if !known.contains_key(&key) && stored.contains(&key) {
                outcomes.push(Outcome::Applied(vec![tell(&event.event, &verdicts[&key])?]));
                known.insert(key, fingerprint::of_request(&event.event));
            } else {
                outcomes.push(asked_again(event, known.get(&key)));
            }
        }
        Ok(outcomes)
    }
}

const fn published(name: &'static str, summary: &'static str, message: &'static str) -> EventType {
    EventType { name, summary, message, sample: "", to_protobuf: None }
}

fn key(event: &Event) -> Key {
    (event.envelope.tenant.clone(), event.event.id.clone())
}

/// The events whose request isn't stored; of several with one id the first.
fn first_of_each<'a>(events: &'a [Event], known: &HashMap<Key, Vec<u8>>) -> Vec<&'a Event> {
    let mut seen = HashSet::new();
    events.iter().filter(|event| !known.contains_key(&key(event)) && seen.insert(key(event))).collect()
}

/// Judges new requests in the order in which they came.
async fn decide(tx: &Tx, fresh: &[&Event]) -> Result<HashMap<Key, Verdict>, HandleError> {
    if fresh.is_empty() {
        return Ok(HashMap::new());
    }
    let now = store::now(tx).await?;
    let wanted: HashSet<Key> = fresh.iter().filter_map(|event| template_key(event)).collect();
    let templates = store::templates(tx, &wanted.into_iter().collect::<Vec<_>>()).await?;
    let mut recent = recent_content(tx, fresh, now).await?;
    let mut verdicts = HashMap::with_capacity(fresh.len());
    for event in fresh {
        let template = template_key(event).and_then(|key| templates.get(&key));
        let mut verdict = judge(&event.event, template, now);
        if verdict.is_ok() && !recent.insert(content(event)) {
            verdict = Err(Refusal::duplicate_content(CONTENT_WINDOW));
        }
        verdicts.insert(key(event), verdict);
    }
    Ok(verdicts)
}

async fn recent_content(tx: &Tx, fresh: &[&Event], now: Timestamp) -> Result<HashSet<(String, Vec<u8>)>, HandleError> {
    let contents: Vec<_> = fresh.iter().map(|event| content(event)).collect();
    Ok(store::recent_content(tx, &contents, now - CONTENT_WINDOW).await?)
}

fn template_key(event: &Event) -> Option<Key> {
    Some((event.envelope.tenant.clone(), event.event.template_id.clone()?))
}

fn content(event: &Event) -> (String, Vec<u8>) {
    (event.envelope.tenant.clone(), fingerprint::of_content(&event.event))
}

fn row(event: &Event, verdict: &Verdict) -> RequestRow {
    let request = &event.event;
    RequestRow {
        key: key(event),
        fingerprint: fingerprint::of_request(request),
        content: request.phone.number().map(|_| fingerprint::of_content(request)),
        reason: verdict.as_ref().err().map(|refusal| refusal.reason),
        phone: request.phone.number().map(|number| number.expose().to_owned()),
        phone_given: request.phone.expose().to_owned(),
        template_id: request.template_id.clone().unwrap_or_default(),
        accepted: verdict.as_ref().ok().map(|accepted| accepted_columns(request, accepted)),
        event_id: event.envelope.id.clone(),
        correlation_id: event.envelope.trace.correlation_id.clone(),
    }
}

fn accepted_columns(request: &SmsRequest, accepted: &Accepted) -> AcceptedColumns {
    let params = request.params.expose().iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    AcceptedColumns {
        template_version: accepted.template_version,
        class: accepted.class.as_str(),
        signature: accepted.signature.clone(),
        params: serde_json::Value::Object(params),
        encoding: accepted.segments.encoding.as_str(),
        segments: i32::try_from(accepted.segments.count).unwrap_or(i32::MAX),
        expires_at: accepted.expires_at,
    }
}

/// The decision for the systems downstream; the number is masked.
fn tell(request: &SmsRequest, verdict: &Verdict) -> Result<Downstream, Rejection> {
    let request_id = request.id.clone();
    let phone_masked = request.phone.to_string();
    let template_id = request.template_id.clone().unwrap_or_default();
    match verdict {
        Ok(accepted) => {
            let message = proto::SmsAccepted {
                request_id,
                phone_masked,
                template_id,
                template_version: accepted.template_version.unsigned_abs(),
                class: accepted.class.to_wire().into(),
                signature: accepted.signature.clone(),
                encoding: accepted.segments.encoding.as_str().to_owned(),
                segments: accepted.segments.count,
                expires_at: Some(wire_time(accepted.expires_at)),
            };
            Downstream::new("sms.accepted.v1", "sms_request", &request.id, &message)
        }
        Err(Refusal { reason, detail }) => {
            let (reason, detail) = ((*reason).to_owned(), detail.clone());
            let message = proto::SmsRejected { request_id, phone_masked, template_id, reason, detail };
            Downstream::new("sms.rejected.v1", "sms_request", &request.id, &message)
        }
    }
}

fn wire_time(time: Timestamp) -> pbjson_types::Timestamp {
    // Both parts have the sign of the whole; protobuf wants the fraction to count forward.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        pbjson_types::Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 }
    } else {
        pbjson_types::Timestamp { seconds, nanos }
    }
}

/// A request whose id is stored: the same once more is nothing to do, another one is a producer's error.
fn asked_again(event: &Event, stored: Option<&Vec<u8>>) -> Outcome {
    // Of one that was forgotten no more is known than that it was dealt with.
    if stored.is_some_and(|known| known.is_empty() || *known == fingerprint::of_request(&event.event)) {
        return Outcome::Skipped(Skip::Because("already_requested"));
    }
    let message = format!(
        "request {:?} was made before with another content, which stands; send a changed request under a new request_id",
        event.event.id
    );
    Outcome::Reject(Rejection::refused("request_conflict", message))
}
