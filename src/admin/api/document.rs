//! The OpenAPI document: written from the table of routes and the types of their handlers whenever it is asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::super::guard;
use super::super::problem::CODES;
use super::super::state::AdminState;
use super::super::wire::{ProblemBody, Readiness};
use super::sheet::{SCHEMAS_AT, Schemas, Sheet};
use super::table::Operation;
use super::{PREFIX, table};

/// What is said of all of it.
const DESCRIPTION: &str = "\
Health, dead letters, jobs, consumers and outbox of a running Onceflow: what `onceflow` itself asks. Every answer that is not the one asked \
for is `application/problem+json` with a stable `code`. Without a token only requests from this machine, to localhost, are answered, and \
only until somebody has made one; with one it needs the role that `x-role` names, or a later one: viewer, operator, admin. Changes may \
be repeated after 503 `database_busy`; after `outcome_unknown` look first.";

pub(super) async fn serve(_state: State<Arc<AdminState>>) -> Json<Value> {
    Json(openapi())
}

/// The whole document, OpenAPI 3.1.
pub fn openapi() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for operation in table().operations() {
        let path = format!("{PREFIX}{}", operation.path);
        let method = operation.method.as_str().to_ascii_lowercase();
        let told = told(&operation, &mut schemas);
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[method] = told;
    }
    paths.extend(health(&mut schemas));
    let problem = schemas.answered.subschema_for::<ProblemBody>();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Onceflow admin API", "version": env!("CARGO_PKG_VERSION"), "description": DESCRIPTION,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }, {}],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "responses": {
                "Refused": response("The request can't be done as it is; the code says why.", &problem.clone().to_value()),
                "Unavailable": response("Not now, or not known; the code says what to do.", &problem.to_value()),
            },
            "schemas": components(&mut schemas),
        },
    });
    make_plain(&mut document);
    document
}

fn response(description: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { "application/problem+json": { "schema": schema } } })
}

fn told(operation: &Operation, schemas: &mut Schemas) -> Value {
    let mut sheet = Sheet { path: operation.path, schemas, parameters: Vec::new(), body: None, answer: None };
    operation.describe.iter().for_each(|describe| describe(&mut sheet));
    let Sheet { parameters, body, answer, .. } = sheet;
    let role = guard::needed(&operation.method, operation.path).as_str();
    let mut told = json!({
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "x-role": role,
        "parameters": parameters,
        "responses": {
            "200": { "description": "Done.", "content": { "application/json": { "schema": answer } } },
            "4XX": { "$ref": "#/components/responses/Refused" },
            "5XX": { "$ref": "#/components/responses/Unavailable" },
        },
    });
    if let Some(schema) = body {
        told["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    told
}

/// `get_jobs_by_id`: the method and the path in words.
fn operation_id(operation: &Operation) -> String {
    let mut id = operation.method.as_str().to_ascii_lowercase();
    for word in operation.path.split(['/', '.']).filter(|word| !word.is_empty()) {
        id.push('_');
        match word.strip_prefix('{') {
            Some(name) => id.push_str(&format!("by_{}", name.trim_end_matches('}'))),
            None => id.push_str(word),
        }
    }
    id
}

/// The two that are asked before everything else, and without a token.
fn health(schemas: &mut Schemas) -> [(String, Value); 2] {
    let readiness = schemas.answered.subschema_for::<Readiness>();
    let answer = |description: &str| json!({ "description": description, "content": { "application/json": { "schema": readiness } } });
    let live = json!({ "get": {
        "operationId": "get_livez", "summary": "Whether the process works; asks nobody else.", "security": [],
        "responses": { "200": { "description": "It does.", "content": { "text/plain": { "schema": { "type": "string" } } } } },
    } });
    let ready = json!({ "get": {
        "operationId": "get_readyz", "summary": "Whether every check is met; reasons only for those who may use the API.",
        "security": [],
        "responses": { "200": answer("All are met."), "503": answer("Some wait.") },
    } });
    [("/livez".to_owned(), live), ("/readyz".to_owned(), ready)]
}

/// The schemas by name. One that is asked for with fewer fields than it is answered with stands there as `…Input` too.
fn components(schemas: &mut Schemas) -> Map<String, Value> {
    let answered = schemas.answered.take_definitions(true);
    let asked = schemas.asked.take_definitions(true);
    let differs = |(name, schema): &(&String, &Value)| answered.get(*name).is_some_and(|other| other != *schema);
    let inputs: BTreeSet<String> = asked.iter().filter(differs).map(|(name, _)| name.clone()).collect();
    let mut all = answered;
    for (name, mut schema) in asked {
        refer_to_inputs(&mut schema, &inputs);
        let name = if inputs.contains(&name) { format!("{name}Input") } else { name };
        all.insert(name, schema);
    }
    let codes: Vec<Value> = CODES.iter().map(|(code, what)| json!({ "const": code, "description": what })).collect();
    if let Some(code) = all.get_mut("ProblemBody").and_then(|body| body.pointer_mut("/properties/code")) {
        *code = json!({ "type": "string", "description": "Stable code.", "oneOf": codes });
    }
    all
}

fn refer_to_inputs(schema: &mut Value, inputs: &BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(target) if key == "$ref" => {
                        let name = target.rsplit('/').next().unwrap_or_default();
                        if inputs.contains(name) {
                            *target = format!("#{SCHEMAS_AT}/{name}Input");
                        }
                    }
                    other => refer_to_inputs(other, inputs),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer_to_inputs(item, inputs)),
        _ => {}
    }
}

/// Links of the Rust documentation lead nowhere here: of ``[`x`](y)`` the `x` is left.
fn make_plain(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "description" => *text = without_links(text),
                    other => make_plain(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_plain),
        _ => {}
    }
}

fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else { break };
        plain.push_str(&format!("{before}`{name}`"));
        rest = match after.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, after)) => after,
            None => after,
        };
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::super::ROUTES;
    use super::*;

    fn operations(document: &Value) -> Vec<&Value> {
        let paths = document["paths"].as_object().unwrap().values();
        paths.flat_map(|item| item.as_object().unwrap().values()).collect()
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = openapi();
        let paths = document["paths"].as_object().unwrap().keys();
        let mut documented: Vec<&str> = paths.filter_map(|path| path.strip_prefix(PREFIX)).collect();
        let mut routes: Vec<&str> = ROUTES.iter().copied().filter(|route| *route != "other").collect();
        documented.sort_unstable();
        routes.sort_unstable();
        assert_eq!(documented, routes);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_an_answer_and_problems() {
        let document = openapi();
        let mut names = BTreeSet::new();
        for operation in operations(&document) {
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{operation}");
            assert!(operation["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{operation}");
            assert!(operation["responses"]["200"]["content"].is_object(), "{operation}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = openapi();
        let text = document.to_string();
        let mut used = BTreeSet::new();
        for target in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(target).is_some(), "{target} leads nowhere");
            used.insert(target.to_owned());
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(used.contains(&format!("{SCHEMAS_AT}/{name}")), "nothing uses {name}");
            // Two types of one name would be told apart by a number that changes with their order.
            assert!(!name.ends_with(|c: char| c.is_ascii_digit()), "{name}: give the type a name of its own");
        }
        assert!(!text.contains("[`"), "links of the Rust documentation");
    }

    #[test]
    fn looking_needs_a_viewer_changing_an_operator_and_tokens_an_admin() {
        let document = openapi();
        let role = |path: &str, method: &str| document["paths"][format!("{PREFIX}{path}")][method]["x-role"].clone();
        for (path, method, expected) in [
            ("/dlq", "get", "viewer"),
            ("/dlq/settled", "post", "viewer"),
            ("/openapi.json", "get", "viewer"),
            ("/jobs", "post", "operator"),
            ("/tokens", "get", "admin"),
        ] {
            assert_eq!(role(path, method), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_setting_may_be_left_out_of_a_question_and_never_of_an_answer() {
        let schemas = &openapi()["components"]["schemas"];
        assert!(schemas["JobSettingsInput"]["required"].is_null(), "{}", schemas["JobSettingsInput"]);
        assert_eq!(schemas["JobSettings"]["required"].as_array().map(Vec::len), Some(4), "{}", schemas["JobSettings"]);
        assert_eq!(
            schemas["JobRequest"]["properties"]["settings"]["$ref"],
            format!("#{SCHEMAS_AT}/JobSettingsInput"),
            "{}",
            schemas["JobRequest"]
        );
    }

    #[test]
    fn links_are_taken_out_of_what_people_read() {
        assert_eq!(without_links("1 to [`MAX`], see [`CAP`](super::CAP)."), "1 to `MAX`, see `CAP`.");
        assert_eq!(without_links("an [`open end"), "an [`open end");
    }
}
