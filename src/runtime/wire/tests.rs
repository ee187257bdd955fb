//! Every form that is accepted, every cap, and arbitrary input: names carry the ids of `spec/reliability.md` §4 E.

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};
use serde_json::{Value, json};

use super::{
    Limits, Parts, attribute_of_unreadable, decode, downstream_message, identity_of_unreadable, sanitize_headers,
    text_without_nul,
};
use crate::event::{Envelope, Format, Rejection, Trace};
use crate::message::{Headers, Message};

fn plain(body: impl Into<Bytes>) -> Message {
    Message {
        message_id: Some("m-1".into()),
        message_type: Some("sms.requested.v1".into()),
        body: body.into(),
        ..Message::default()
    }
}

fn binary(headers: &[(&str, Value)]) -> Message {
    let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    Message { headers, body: Bytes::from_static(b"{}"), ..Message::default() }
}

fn structured(event: &Value) -> Message {
    structured_text(&event.to_string())
}

fn structured_text(event: &str) -> Message {
    Message {
        content_type: Some("application/cloudevents+json; charset=UTF-8".into()),
        body: Bytes::copy_from_slice(event.as_bytes()),
        ..Message::default()
    }
}

fn read(message: &Message) -> Result<Envelope, Rejection> {
    decode(message, &Limits::default())
}

fn code(message: &Message) -> &'static str {
    read(message).unwrap_err().code
}

#[test]
fn a_plain_message_needs_only_id_type_and_json() {
    let envelope = read(&plain(r#"{"a":1}"#)).unwrap();
    assert_eq!((envelope.id.as_str(), envelope.source.as_str()), ("m-1", ""));
    assert_eq!((envelope.partition_key.as_str(), envelope.tenant.as_str()), ("m-1", "default"));
    assert_eq!(envelope.format, Format::Json);
    assert_eq!(&envelope.data[..], br#"{"a":1}"#);
}

#[test]
fn the_binary_form_is_read_with_both_prefixes_in_any_case() {
    let envelope = read(&binary(&[
        ("cloudEvents:specversion", json!("1.0")),
        ("CloudEvents_ID", json!("7")),
        ("cloudEvents:type", json!("a.b.v1")),
        ("cloudevents_source", json!("/hr")),
        ("cloudEvents:subject", json!("user/42")),
        ("cloudEvents:time", json!("2026-01-31T08:00:00+08:00")),
        ("cloudEvents:tenant", json!("acme")),
        ("cloudEvents:correlationid", json!("c-1")),
        ("x-anything", json!({"deep": [1, 2]})),
    ]))
    .unwrap();
    assert_eq!((envelope.id.as_str(), envelope.source.as_str()), ("7", "/hr"));
    assert_eq!((envelope.partition_key.as_str(), envelope.tenant.as_str()), ("user/42", "acme"));
    assert_eq!(envelope.time, Some("2026-01-31T00:00:00Z".parse::<Timestamp>().unwrap()));
    assert_eq!(envelope.trace.correlation_id.as_deref(), Some("c-1"));
}

#[test]
fn properties_serve_where_a_header_is_missing() {
    let mut message = binary(&[("cloudEvents:source", json!("/hr"))]);
    message.message_id = Some("9".into());
    message.message_type = Some("a.b.v1".into());
    message.timestamp = Some(1_700_000_000);
    message.correlation_id = Some("c-2".into());
    message.content_type = Some("Application/Protobuf".into());
    let envelope = read(&message).unwrap();
    assert_eq!((envelope.id.as_str(), envelope.event_type.as_str()), ("9", "a.b.v1"));
    assert_eq!(envelope.time.unwrap().as_second(), 1_700_000_000);
    assert_eq!(envelope.trace.correlation_id.as_deref(), Some("c-2"));
    assert_eq!(envelope.format, Format::Protobuf);
}

#[test]
fn numbers_and_truth_values_in_attributes_become_text() {
    let message = binary(&[("cloudEvents:id", json!(42)), ("cloudEvents:type", json!(true))]);
    let envelope = read(&message).unwrap();
    assert_eq!((envelope.id.as_str(), envelope.event_type.as_str()), ("42", "true"));
}

#[test]
fn the_structured_form_hands_on_the_exact_bytes_of_its_data() {
    let text = r#"{"specversion":"1.0","id":"1","type":"a.b.v1","source":"s","partitionkey":"k",
        "data" : { "n": 12345678901234567890.10,  "n": 1e400 } , "unknown": [1]}"#;
    let envelope = read(&structured_text(text)).unwrap();
    assert_eq!(&envelope.data[..], br#"{ "n": 12345678901234567890.10,  "n": 1e400 }"#);
    assert_eq!(envelope.partition_key, "k");
}

#[test]
fn the_structured_form_reads_base64_with_and_without_padding() {
    for encoded in ["AQI=", "AQI"] {
        let event = json!({"specversion": "1.0", "id": "1", "type": "t", "source": "s",
            "datacontenttype": "application/protobuf", "data_base64": encoded});
        let envelope = read(&structured(&event)).unwrap();
        assert_eq!((envelope.format, &envelope.data[..]), (Format::Protobuf, &[1u8, 2][..]));
    }
}

#[test]
fn e03_an_id_given_twice_with_different_texts_is_a_conflict() {
    let mut message = binary(&[("cloudEvents:id", json!("1")), ("cloudEvents:type", json!("t"))]);
    message.message_id = Some("2".into());
    assert_eq!(code(&message), "conflicting_id");
    message.message_id = Some("1".into());
    assert!(read(&message).is_ok());
    let twice = binary(&[("cloudEvents:id", json!("1")), ("cloudEvents_id", json!("2"))]);
    assert_eq!(code(&twice), "conflicting_id");
    let types = binary(&[("cloudEvents:type", json!("1")), ("cloudEvents_type", json!("2"))]);
    assert_eq!(code(&types), "conflicting_attribute");
}

#[test]
fn e04_a_message_without_an_id_is_rejected_and_kept_under_the_hash_of_its_body() {
    let message = Message { message_id: None, ..plain("{}") };
    assert_eq!(code(&message), "missing_id");
    let (source, id) = identity_of_unreadable(&message);
    assert_eq!(source, "");
    assert_eq!(id, "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    assert_eq!(identity_of_unreadable(&plain("{}")).1, "m-1");
    // An unusable id is no identity: cut, it could fall together with another one.
    let long = Message { message_id: Some("x".repeat(300)), ..plain("{}") };
    assert!(identity_of_unreadable(&long).1.starts_with("sha256:"));
    assert_eq!(attribute_of_unreadable(&message, "type").as_deref(), Some("sms.requested.v1"));
    assert_eq!(attribute_of_unreadable(&message, "tenant"), None);
}

#[test]
fn e05_what_cannot_be_read_is_rejected_with_its_reason() {
    assert_eq!(code(&plain("")), "empty_body");
    assert_eq!(code(&plain(&b"{\"a\": \"\xff\"}"[..])), "invalid_utf8");
    assert_eq!(code(&Message { message_type: None, ..plain("{}") }), "missing_type");
    assert_eq!(code(&Message { content_type: Some("text/xml".into()), ..plain("{}") }), "unsupported_content_type");
    let charset = Some("application/json; charset=gbk".into());
    assert_eq!(code(&Message { content_type: charset, ..plain("{}") }), "unsupported_content_type");
    assert_eq!(code(&structured_text("{\"id\": ")), "invalid_json");
    assert_eq!(code(&structured_text("\"text\"")), "invalid_json");
    let version = |v: Value| json!({"specversion": v, "id": "1", "type": "t", "source": "s", "data": {}});
    assert_eq!(code(&structured(&version(json!("0.3")))), "unsupported_specversion");
    assert_eq!(code(&structured(&version(json!(["1.0"])))), "invalid_attribute");
    assert_eq!(code(&structured(&json!({"id": "1", "type": "t"}))), "empty_body");
    assert_eq!(code(&structured(&json!({"id": "1", "type": "t", "data": null}))), "empty_body");
    assert_eq!(code(&structured(&json!({"id": "1", "type": "t", "data_base64": "%"}))), "invalid_base64");
    assert_eq!(code(&structured(&json!({"id": "", "type": "t", "data": {}}))), "missing_id");
}

#[test]
fn e05_unusable_attributes_are_named() {
    for (name, value) in [
        ("id", "a\u{0}b".to_owned()),
        ("source", "x".repeat(513)),
        ("type", "a\nb".to_owned()),
        ("subject", "x".repeat(256)),
        ("partitionkey", "\u{1b}[31m".to_owned()),
        ("tenant", "x".repeat(256)),
    ] {
        let mut message = plain("{}");
        message.message_id = None;
        message.message_type = None;
        for (key, text) in [("id", "1"), ("type", "t"), (name, value.as_str())] {
            message.headers.insert(format!("cloudEvents:{key}"), json!(text));
        }
        let rejection = read(&message).unwrap_err();
        assert_eq!(rejection.code, "invalid_attribute");
        assert!(rejection.message.contains(&format!("`{name}`")), "{}", rejection.message);
        assert!(!rejection.message.chars().any(char::is_control));
    }
}

#[test]
fn e05_a_time_that_is_none_is_rejected_with_an_example() {
    let mut message = plain("{}");
    message.timestamp = Some(u64::MAX);
    assert_eq!(code(&message), "invalid_time");
    message.headers.insert("cloudEvents:time".into(), json!("yesterday"));
    let rejection = read(&message).unwrap_err();
    assert_eq!(rejection.code, "invalid_time");
    assert!(rejection.message.contains("RFC 3339"));
}

#[test]
fn e06_e07_deep_json_is_rejected_in_every_form() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(read(&plain(nested(64))).is_ok());
    assert_eq!(code(&plain(nested(65))), "json_too_deep");
    let event = |n: usize| structured_text(&format!(r#"{{"id":"1","type":"t","data":{}}}"#, nested(n)));
    assert!(read(&event(64)).is_ok());
    assert_eq!(code(&event(65)), "json_too_deep");
    assert_eq!(code(&event(500_000)), "json_too_deep");
    let inside = base64(nested(65).as_bytes());
    assert_eq!(code(&structured(&json!({"id": "1", "type": "t", "data_base64": inside}))), "json_too_deep");
    assert_eq!(code(&plain(format!("[{}1]", "1,".repeat(200_000)))), "json_too_many_values");
}

#[test]
fn e08_odd_json_has_a_defined_end() {
    let event = |id: &str| structured_text(&format!(r#"{{"id":{id},"type":"t","data":{{}}}}"#));
    // The digits of a number are its identity: two ids never fall together by rounding.
    assert_eq!(read(&event("12345678901234567890123")).unwrap().id, "12345678901234567890123");
    assert_eq!(read(&event("1e400")).unwrap().id, "1e400");
    assert_eq!(code(&event(r#""\u0000""#)), "invalid_attribute");
    assert_eq!(code(&event(r#""\ud800""#)), "invalid_json");
    assert_eq!(code(&event(r#""1","id":"2""#)), "invalid_json");
}

#[test]
fn e09_size_is_checked_before_anything_else() {
    // Not even UTF-8: the size is what is said.
    assert_eq!(code(&plain(vec![0xff; 1024 * 1024 + 1])), "body_too_large");
    let mut message = plain(&b"\x1f\x8b"[..]);
    message.content_encoding = Some("gzip".into());
    assert_eq!(code(&message), "unsupported_content_encoding");
    message = plain("{}");
    message.content_encoding = Some("UTF-8".into());
    assert!(read(&message).is_ok());
}

#[test]
fn e10_huge_header_tables_are_rejected_and_forged_ones_dropped() {
    let mut message = plain("{}");
    message.headers = (0..65).map(|n| (format!("h{n}"), json!(1))).collect();
    assert_eq!(code(&message), "too_many_headers");
    message.headers = [("h".to_owned(), json!("x".repeat(40_000)))].into();
    assert_eq!(code(&message), "headers_too_large");
    let deep = (0..50).fold(json!(1), |inner, _| json!([inner]));
    message.headers = [("h".to_owned(), deep)].into();
    assert_eq!(code(&message), "headers_too_large");
    assert_eq!(sanitize_headers(&message.headers), Headers::new());

    let forged: Headers =
        [("x-death", json!([{"count": 99}])), ("X-Delivery-Count", json!(7)), ("kept", json!("a\u{0}"))]
            .map(|(k, v)| (k.to_owned(), v))
            .into();
    assert_eq!(sanitize_headers(&forged), [("kept".to_owned(), json!("a\u{FFFD}"))].into());
}

#[test]
fn sanitized_headers_always_fit_a_frame_and_keep_ours_first() {
    let mut headers: Headers = (0..60).map(|n| (format!("a{n}"), json!("ü".repeat(5_000)))).collect();
    headers.insert("cloudEvents:id".into(), json!("1"));
    headers.insert("onceflow-attempt".into(), json!(3));
    let kept = sanitize_headers(&headers);
    assert!(serde_json::to_string(&*kept).unwrap().len() < 20_000);
    assert_eq!((&kept["cloudEvents:id"], &kept["onceflow-attempt"]), (&json!("1"), &json!(3)));
    assert_eq!(text_without_nul("a\0b"), "a\u{FFFD}b");
}

#[test]
fn a_downstream_message_reads_back_as_what_it_was() {
    let trace =
        Trace { correlation_id: Some("c".into()), causation_id: Some("d".into()), traceparent: Some("t".into()) };
    let time: Timestamp = "2026-01-31T08:00:00.123456Z".parse().unwrap();
    let message = downstream_message(Parts {
        id: "1",
        event_type: "a.b.v1",
        source: "onceflow",
        subject: Some("user/42"),
        partition_key: "42",
        tenant: "acme",
        trace: &trace,
        time,
        format: Format::Json,
        body: Bytes::from_static(b"{}"),
    });
    assert_eq!(message.message_id.as_deref(), Some("1"));
    let envelope = read(&message).unwrap();
    assert_eq!((envelope.time, &envelope.trace), (Some(time), &trace));
    assert_eq!((envelope.subject.as_deref(), envelope.partition_key.as_str()), (Some("user/42"), "42"));
    assert_eq!((envelope.source.as_str(), envelope.tenant.as_str()), ("onceflow", "acme"));
}

#[test]
fn a_downstream_message_with_endless_texts_still_fits_a_frame() {
    let long = "长".repeat(50_000);
    let trace =
        Trace { traceparent: Some(long.clone()), correlation_id: Some(long.clone()), causation_id: Some(long.clone()) };
    let message = downstream_message(Parts {
        id: &long,
        event_type: &long,
        source: &long,
        subject: Some(&long),
        partition_key: &long,
        tenant: &long,
        trace: &trace,
        time: Timestamp::UNIX_EPOCH,
        format: Format::Protobuf,
        body: Bytes::new(),
    });
    assert!(serde_json::to_string(&*message.headers).unwrap().len() < 8 * 1024);
    assert_eq!((message.message_id, message.message_type, message.correlation_id), (None, None, None));
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<String>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
    ];
    leaf.prop_recursive(12, 64, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_header() -> impl Strategy<Value = (String, Value)> {
    let names = prop_oneof![
        any::<String>(),
        "(cloudEvents|CLOUDEVENTS)[:_](id|source|type|time|subject|tenant|specversion|datacontenttype|traceparent)",
    ];
    (names, any_value())
}

fn any_message() -> impl Strategy<Value = Message> {
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        any_value().prop_map(|v| v.to_string().into_bytes()),
        (any_value(), any_value(), any_value())
            .prop_map(|(id, kind, data)| json!({"id": id, "type": kind, "data": data}).to_string().into_bytes()),
        "[\\[\\]{}\",:\\\\ud8001e.-]{0,60}".prop_map(String::into_bytes),
    ];
    let content_type = prop_oneof![
        any::<Option<String>>(),
        "application/(json|protobuf|cloudevents\\+json)(; ?charset=.{0,8})?".prop_map(Some),
    ];
    let properties = (any::<Option<String>>(), any::<Option<String>>(), any::<Option<String>>(), any::<Option<u64>>());
    (properties, content_type, prop::collection::vec(any_header(), 0..8), body).prop_map(
        |((message_id, message_type, correlation_id, timestamp), content_type, headers, body)| Message {
            message_id,
            message_type,
            correlation_id,
            timestamp,
            content_type,
            headers: headers.into_iter().collect(),
            body: body.into(),
            ..Message::default()
        },
    )
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic_and_accepted_ones_are_clean(message in any_message()) {
        if let Ok(envelope) = read(&message) {
            for text in [&envelope.id, &envelope.source, &envelope.event_type, &envelope.tenant, &envelope.partition_key] {
                assert!(text.len() <= 512 && !text.chars().any(char::is_control));
            }
            assert!(!envelope.id.is_empty() && !envelope.event_type.is_empty() && !envelope.data.is_empty());
        }
        let (source, id) = identity_of_unreadable(&message);
        assert!(!id.is_empty() && id.len() <= 255 && source.len() <= 512);
        assert!(!serde_json::to_string(&*sanitize_headers(&message.headers)).unwrap().contains("\\u0000"));
    }
}
