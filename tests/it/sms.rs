//! SMS requests on a real database: judged and stored once, told downstream without a phone number.

use futures_util::future::join_all;
use onceflow::domains::consumers;
use onceflow::event::{Downstream, Envelope, Format, Rejection};
use onceflow::runtime::{AnyConsumer, Outcome, Skip};
use serde_json::{Value, json};

use crate::harness::direct::{Direct, envelope};

const REQUESTED: &str = "sms.requested.v1";
const PHONE: &str = "13812345678";

fn consumer() -> Box<dyn AnyConsumer> {
    consumers().into_iter().find(|consumer| consumer.name() == "sms").unwrap()
}

async fn direct() -> Direct {
    Direct::named("sms").await
}

fn request(id: &str, code: &str) -> Value {
    json!({"requestId": id, "phone": PHONE, "templateId": "login_code", "params": {"code": code, "minutes": "5"}})
}

fn with(mut request: Value, changes: Value) -> Value {
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (name, value) in changes {
        request[name] = value;
    }
    request
}

/// An event with an id that nothing else has.
fn event(payload: &Value) -> Envelope {
    envelope(REQUESTED, &uuid::Uuid::now_v7().to_string(), payload)
}

fn told(outcome: Result<Outcome, Rejection>) -> (&'static str, Value) {
    let Ok(Outcome::Applied(downstream)) = outcome else { panic!("not applied: {outcome:?}") };
    let [Downstream { event_type, payload, aggregate_type: "sms_request", .. }] = &downstream[..] else {
        panic!("not one event: {downstream:?}")
    };
    assert!(!payload.contains(&PHONE[3..]), "the number goes downstream: {payload}");
    (event_type, serde_json::from_str(payload).unwrap())
}

fn already_requested() -> Result<Outcome, Rejection> {
    Ok(Outcome::Skipped(Skip::Because("already_requested")))
}

/// Requests stored, by state.
async fn stored(direct: &Direct) -> (i64, i64) {
    let count = "SELECT count(*) FILTER (WHERE state = 'accepted'), count(*) FILTER (WHERE state = 'rejected')
                   FROM onceflow.sms_request";
    let row = direct.database.client().await.query_one(count, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn m10_an_accepted_request_is_stored_whole_and_told_with_a_masked_number() {
    let direct = direct().await;
    let (event_type, payload) = told(direct.apply_one(event(&request("r-1", "482913"))).await);
    assert_eq!(event_type, "sms.accepted.v1");
    assert_eq!(payload["phoneMasked"], "138****5678");
    assert_eq!(
        (&payload["class"], &payload["encoding"], &payload["segments"]),
        (&json!("OTP"), &json!("GSM-7"), &json!(1))
    );
    assert!(payload.get("params").is_none() && !payload.to_string().contains("482913"));

    let sql = "SELECT state, phone, phone_given, template_version, params ->> 'code', expires_at > requested_at
                 FROM onceflow.sms_request WHERE tenant = 'default' AND request_id = 'r-1'";
    let row = direct.database.client().await.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "accepted");
    assert_eq!((row.get::<_, &str>(1), row.get::<_, &str>(2)), ("+8613812345678", PHONE));
    assert_eq!((row.get::<_, i32>(3), row.get::<_, &str>(4), row.get::<_, bool>(5)), (1, "482913", true));
}

#[tokio::test]
async fn the_sample_is_accepted_as_json_and_as_protobuf() {
    let kind = consumer().reads()[0];
    let to_protobuf = kind.to_protobuf.unwrap();
    let direct = direct().await;
    let sample: Value = serde_json::from_str(kind.sample).unwrap();
    assert_eq!(told(direct.apply_one(event(&sample)).await).0, "sms.accepted.v1");
    let mut binary = event(&sample);
    binary.data = to_protobuf(kind.sample).unwrap().into();
    binary.format = Format::Protobuf;
    assert_eq!(direct.apply_one(binary).await, already_requested());
}

#[tokio::test]
async fn m01_a_request_is_stored_once_however_often_it_is_sent() {
    let direct = direct().await;
    let payload = request("r-1", "1111");
    told(direct.apply_one(event(&payload)).await);
    assert_eq!(direct.apply_one(event(&payload)).await, already_requested());
    // The same number in another spelling is the same request.
    let spelled = with(payload, json!({"phone": "+86 138-1234-5678"}));
    assert_eq!(direct.apply_one(event(&spelled)).await, already_requested());
    assert_eq!(stored(&direct).await, (1, 0));
}

#[tokio::test]
async fn m01_parallel_copies_of_a_request_are_stored_once() {
    let direct = direct().await;
    let copies = (0..8).map(|_| direct.apply_one(event(&request("r-1", "1111"))));
    let outcomes = join_all(copies).await;
    let applied = outcomes.iter().filter(|o| matches!(o, Ok(Outcome::Applied(_)))).count();
    let skipped = outcomes.iter().filter(|o| **o == already_requested()).count();
    assert_eq!((applied, skipped), (1, 7), "{outcomes:?}");
    assert_eq!(stored(&direct).await, (1, 0));
}

#[tokio::test]
async fn m01_batches_that_share_requests_in_opposite_order_both_end() {
    let direct = direct().await;
    let ids: Vec<String> = (0..40).map(|n| format!("r-{n}")).collect();
    let batch = |ids: Vec<&String>| ids.into_iter().map(|id| event(&request(id, &id[2..]))).collect::<Vec<_>>();
    let (forward, backward) = (batch(ids.iter().collect()), batch(ids.iter().rev().collect()));
    let (one, two) = tokio::join!(direct.apply_batch(forward), direct.apply_batch(backward));
    let applied = one.unwrap().into_iter().chain(two.unwrap()).filter(|o| matches!(o, Outcome::Applied(_))).count();
    assert_eq!(applied, 40);
    assert_eq!(stored(&direct).await, (40, 0));
}

#[tokio::test]
async fn e03_a_request_id_with_another_content_is_refused_and_the_first_stands() {
    let direct = direct().await;
    told(direct.apply_one(event(&request("r-1", "1111"))).await);
    let rejection = direct.apply_one(event(&request("r-1", "2222"))).await.unwrap_err();
    assert_eq!(rejection.code, "request_conflict");
    assert!(rejection.message.contains("\"r-1\"") && rejection.message.contains("new request_id"));
    assert!(!rejection.message.contains("2222") && !rejection.message.contains(PHONE));
    let client = direct.database.client().await;
    let row = client.query_one("SELECT params ->> 'code' FROM onceflow.sms_request", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "1111");
    // Another tenant's request of the same id is another request.
    let mut other = event(&request("r-1", "2222"));
    other.tenant = "acme".into();
    assert_eq!(told(direct.apply_one(other).await).1["reason"], "unknown_template");
}

#[tokio::test]
async fn every_broken_rule_is_stored_once_as_rejected_and_told_with_its_reason() {
    let direct = direct().await;
    let cases = [
        (json!({"phone": "12345"}), "invalid_phone"),
        (json!({"phone": "1381234567813812345678 and \u{0}"}), "invalid_phone"),
        (json!({"templateId": "free_text"}), "unknown_template"),
        (json!({"templateId": "a\u{0}b"}), "unknown_template"),
        (json!({"class": "MARKETING"}), "class_mismatch"),
        (json!({"signature": "Bank"}), "signature_mismatch"),
        (json!({"params": {"code": "1111"}}), "missing_param"),
        (json!({"params": {"code": "1111", "minutes": "5", "13812345678": "x"}}), "unknown_param"),
        (json!({"params": {"code": "call \u{0}", "minutes": "5"}}), "invalid_param"),
        (json!({"expiresAt": "2020-01-01T00:00:00Z"}), "expired"),
    ];
    for (n, (changes, reason)) in cases.iter().enumerate() {
        let payload = with(request(&format!("bad-{n}"), "1111"), changes.clone());
        let (event_type, told) = told(direct.apply_one(event(&payload)).await);
        assert_eq!((event_type, told["reason"].as_str().unwrap()), ("sms.rejected.v1", *reason));
        assert_eq!(direct.apply_one(event(&payload)).await, already_requested());
    }
    assert_eq!(stored(&direct).await, (0, 10));
}

#[tokio::test]
async fn e05_what_has_no_request_id_or_cannot_be_read_is_a_dead_letter() {
    let direct = direct().await;
    let code = |payload: Value| {
        let direct = &direct;
        async move { direct.apply_one(event(&payload)).await.unwrap_err().code }
    };
    assert_eq!(code(json!({"phone": PHONE})).await, "missing_request_id");
    assert_eq!(code(json!({"requestId": "a\u{0}"})).await, "invalid_request_id");
    assert_eq!(code(json!({"requestId": {"a": 1}})).await, "invalid_json");
    assert_eq!(code(json!({"requestId": "1", "expiresAt": "soon"})).await, "invalid_json");
    assert_eq!(stored(&direct).await, (0, 0));
}

#[tokio::test]
async fn m01_the_same_text_for_the_same_number_at_once_is_refused_under_another_id() {
    let direct = direct().await;
    let batch = vec![event(&request("r-1", "1111")), event(&request("r-2", "1111")), event(&request("r-3", "2222"))];
    let outcomes = direct.apply_batch(batch).await.unwrap();
    let told: Vec<_> = outcomes.into_iter().map(|outcome| told(Ok(outcome))).collect();
    assert_eq!((told[0].0, told[2].0), ("sms.accepted.v1", "sms.accepted.v1"));
    assert_eq!((told[1].0, told[1].1["reason"].as_str()), ("sms.rejected.v1", Some("duplicate_content")));

    let later = "UPDATE onceflow.sms_request SET requested_at = requested_at - interval '31 seconds'";
    direct.database.client().await.execute(later, &[]).await.unwrap();
    let again = direct.apply_one(event(&request("r-4", "1111"))).await;
    assert_eq!(self::told(again).0, "sms.accepted.v1");
}

#[tokio::test]
async fn a_batch_with_copies_of_one_request_answers_each_event() {
    let direct = direct().await;
    told(direct.apply_one(event(&request("old", "1111"))).await);
    let batch = vec![
        event(&request("old", "1111")),
        event(&request("new", "2222")),
        event(&request("new", "2222")),
        event(&with(request("bad", "3333"), json!({"phone": "1"}))),
    ];
    let outcomes = direct.apply_batch(batch).await.unwrap();
    let skipped = Outcome::Skipped(Skip::Because("already_requested"));
    assert_eq!((&outcomes[0], &outcomes[2]), (&skipped, &skipped));
    assert_eq!(told(Ok(outcomes[1].clone())).0, "sms.accepted.v1");
    assert_eq!(told(Ok(outcomes[3].clone())).0, "sms.rejected.v1");
    assert_eq!(stored(&direct).await, (2, 1));
}

#[tokio::test]
async fn m10_the_newest_approved_version_of_a_template_is_used() {
    let direct = direct().await;
    let versions =
        "INSERT INTO onceflow.sms_template (tenant, template_id, version, signature, class, params, body, state)
        VALUES ('default', 'login_code', 2, 'Onceflow', 'OTP', '{code}', '${code}', 'approved'),
               ('default', 'login_code', 3, 'Onceflow', 'OTP', '{}', 'none', 'withdrawn')";
    direct.database.client().await.execute(versions, &[]).await.unwrap();
    let payload = with(request("r-1", "1111"), json!({"params": {"code": "1111"}}));
    let (_, accepted) = told(direct.apply_one(event(&payload)).await);
    assert_eq!(accepted["templateVersion"], 2);
}

#[tokio::test]
async fn a_batch_takes_as_many_statements_for_a_hundred_requests_as_for_one() {
    let direct = direct().await;
    for size in [1, 10, 100] {
        let batch = || (0..size).map(|n| event(&request(&format!("r-{size}-{n}"), &format!("{size}{n}")))).collect();
        assert_eq!(direct.statements(batch()).await, 5, "{size} new requests");
        assert_eq!(direct.statements(batch()).await, 1, "{size} known requests");
    }
}
