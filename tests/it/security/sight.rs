//! Who sees what a producer wrote (§7.17): a viewer nothing of it, anybody else masked, and as it is only who asks for that, which the audit
//! tells.

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio_postgres::Client as Postgres;

use crate::admin::{Door, answer};
use crate::harness::Database;

const TOKEN: &str = "a-token-for-the-sight-of-payloads";
const PHONE: &str = "13812345678";
const WORD: &str = "zebra";
/// A dead letter whose payload and header hold a number, and whose edit changed it.
const FAILED: &str = r#"
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason, error_chain, payload, headers,
            original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version, state,
            closed_at, closed_by)
    VALUES ('00000000-0000-0000-0000-000000000001', 'default', 'sms', '', '1', 'sms.requested.v1', 'decode', 'invalid_json',
            ARRAY['broken'], '{"phone":"13812345678","region":"zebra"}',
            '{"amqp:type":"sms.requested.v1","to":"13812345678","region":"zebra"}', 'flow.in', 'x', 1, now(), now(), '1', 'edited',
            now(), 'li');
    INSERT INTO onceflow.dead_letter_edit (tenant, dead_letter_id, consumer, source, event_id, copy_tenant, copy_event_id, edited_by,
            reason, diff, payload)
    VALUES ('default', '00000000-0000-0000-0000-000000000001', 'sms', '', '1', 'default', '00000000-0000-0000-0000-000000000002', 'li',
            'typing mistake', '{"fields":[{"path":"payload.phone","before":"1381234567","after":"13812345678"},
            {"path":"payload.region","before":"zebra"}],"cut":false,"only_in_form":false,"bytes_before":1,"bytes_after":1,
            "sha256_before":"","sha256_after":""}', '{}');"#;
const LETTER: &str = "/api/v1/dlq/00000000-0000-0000-0000-000000000001";
const SIGHTS: &str = "
    SELECT concat_ws(' ', actor, subject, detail->>'seen', reason) FROM onceflow.audit WHERE action = 'dlq.unmask' ORDER BY at";

/// The door of a service with one token of each role.
struct Desk {
    door: Door,
    postgres: Postgres,
    viewer: String,
    operator: String,
}

impl Desk {
    async fn open(database: &Database) -> Self {
        let door = Door::open(database.pool(), Some(TOKEN)).await;
        let postgres = database.client().await;
        postgres.batch_execute(FAILED).await.unwrap();
        let mut secrets = Vec::new();
        for role in ["viewer", "operator"] {
            let (status, made) = door.post("/api/v1/tokens", json!({ "name": role, "role": role })).await;
            assert_eq!(status, 200, "{made}");
            secrets.push(made["secret"].as_str().unwrap().to_owned());
        }
        let [viewer, operator] = secrets.try_into().unwrap();
        Self { door, postgres, viewer, operator }
    }

    async fn ask(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = Client::new().request(method, format!("http://{}{LETTER}{path}", self.door.address));
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request.bearer_auth(token).send().await.unwrap()).await
    }

    async fn sights(&self) -> Vec<String> {
        self.postgres.query(SIGHTS, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn who_may_only_look_sees_why_it_failed_and_not_with_what_s7_17() {
    let database = Database::new().await;
    let desk = Desk::open(&database).await;
    for path in ["", "/diff"] {
        let (status, seen) = desk.ask(&desk.viewer, Method::GET, path, None).await;
        assert_eq!((status, &seen["is_masked"]), (200, &json!(true)), "{seen}");
        for word in [PHONE, "1381234567", WORD] {
            assert!(!seen.to_string().contains(word), "{word}: {seen}");
        }
    }
    let (_, letter) = desk.ask(&desk.viewer, Method::GET, "", None).await;
    assert_eq!(
        (&letter["error_chain"], &letter["headers"]["amqp:type"]),
        (&json!(["broken"]), &json!("sms.requested.v1"))
    );
    let (_, edit) = desk.ask(&desk.viewer, Method::GET, "/diff", None).await;
    assert_eq!(edit["diff"]["fields"][0]["path"], "payload.phone");
    for path in ["/unmask", "/diff"] {
        let (status, refused) = desk.ask(&desk.viewer, Method::POST, path, Some(json!({}))).await;
        assert_eq!((status, &refused["code"]), (403, &json!("not_permitted")), "{refused}");
    }
    assert!(desk.sights().await.is_empty());
}

/// An open dead letter like [`FAILED`].
const OPEN: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason, error_chain, payload, headers,
            original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version)
    SELECT gen_random_uuid(), tenant, consumer, source, '3', event_type, stage, reason, error_chain, payload, headers, original_exchange,
           original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version FROM onceflow.dead_letter";

#[tokio::test]
async fn a_plan_shows_payloads_to_those_who_could_carry_it_out_and_to_no_viewer_s7_17() {
    let database = Database::new().await;
    let desk = Desk::open(&database).await;
    desk.postgres.batch_execute(OPEN).await.unwrap();
    let plan = json!({ "action": "replay", "selection": { "filter": {} }, "reason": "mended", "plan_only": true });
    let (status, planned) = desk.door.post("/api/v1/jobs", plan).await;
    assert_eq!(status, 200, "{planned}");
    let path = format!("/api/v1/jobs/{}", planned["job"]["id"].as_str().unwrap());
    for (token, payload) in
        [(&desk.viewer, Value::Null), (&desk.operator, json!(r#"{"phone":"****78","region":"zebra"}"#))]
    {
        let request = Client::new().get(format!("http://{}{path}", desk.door.address)).bearer_auth(token);
        let (status, job) = answer(request.send().await.unwrap()).await;
        assert_eq!((status, &job["plan"]["hints"]["previews"][0]["payload"]), (200, &payload), "{job}");
    }
}

#[tokio::test]
async fn an_operator_sees_numbers_masked_and_as_they_are_only_with_a_row_in_the_audit_s7_17() {
    let database = Database::new().await;
    let desk = Desk::open(&database).await;
    let (_, letter) = desk.ask(&desk.operator, Method::GET, "", None).await;
    assert_eq!(
        (&letter["payload_masked"], &letter["payload_text"]),
        (&json!(r#"{"phone":"****78","region":"zebra"}"#), &json!(null))
    );
    assert_eq!((&letter["headers"]["to"], &letter["headers"]["region"]), (&json!("****78"), &json!(WORD)), "{letter}");
    let (_, edit) = desk.ask(&desk.operator, Method::GET, "/diff", None).await;
    assert_eq!(
        edit["diff"]["fields"],
        json!([{ "path": "payload.phone", "before": "****67", "after": "****78" }, { "path": "payload.region", "before": WORD }])
    );
    assert!(desk.sights().await.is_empty());

    let (status, letter) =
        desk.ask(&desk.operator, Method::POST, "/unmask", Some(json!({ "reason": "asked by wang" }))).await;
    assert_eq!(
        (status, &letter["headers"]["to"], &letter["is_masked"]),
        (200, &json!(PHONE), &json!(false)),
        "{letter}"
    );
    assert_eq!(letter["payload_text"], format!(r#"{{"phone":"{PHONE}","region":"zebra"}}"#));
    let (status, edit) = desk.ask(&desk.operator, Method::POST, "/diff", Some(json!({}))).await;
    assert_eq!((status, &edit["diff"]["fields"][0]["after"]), (200, &json!(PHONE)), "{edit}");
    let id = "00000000-0000-0000-0000-000000000001";
    assert_eq!(desk.sights().await, [format!("operator {id} payload asked by wang"), format!("operator {id} edit")]);
    let (_, trace) = desk.door.get("/api/v1/events/trace?id=1").await;
    let seen = trace["items"].as_array().unwrap().iter().filter(|step| step["what"] == "seen").count();
    assert_eq!(seen, 2, "{trace}");
}
