//! What the types of a handler say of its route: parameters, body, answer.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::super::guard::Caller;
use super::super::problem::Problem;
use super::super::state::AdminState;
use super::super::wire::ACTOR_HEADER;

/// Where the document keeps its schemas.
pub(super) const SCHEMAS_AT: &str = "/components/schemas";

/// The schemas of what is asked and of what is answered: a field with a default may be left out of a question, never of an
/// answer.
pub(super) struct Schemas {
    pub(super) asked: SchemaGenerator,
    pub(super) answered: SchemaGenerator,
}

impl Schemas {
    pub(super) fn new() -> Self {
        let generator = |contract: Contract| {
            let settings = SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS_AT.into();
                settings.meta_schema = None;
                settings.contract = contract;
            });
            settings.into_generator()
        };
        Self { asked: generator(Contract::Deserialize), answered: generator(Contract::Serialize) }
    }
}

/// One operation while it is written down.
pub(super) struct Sheet<'a> {
    pub(super) path: &'static str,
    pub(super) schemas: &'a mut Schemas,
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
    pub(super) answer: Option<Value>,
}

/// A handler; `Args` are the types of its arguments.
pub(super) trait Endpoint<Args> {
    /// Writes down what they and its answer say.
    fn describe(sheet: &mut Sheet<'_>);
}

/// An argument or an answer of a handler.
pub(super) trait Part {
    /// Writes down what it says of the route; by default nothing.
    fn describe(_sheet: &mut Sheet<'_>) {}
}

impl<F, W, A> Endpoint<(A,)> for F
where
    F: Fn(A) -> W,
    W: Future<Output: Part>,
    A: Part,
{
    fn describe(sheet: &mut Sheet<'_>) {
        A::describe(sheet);
        W::Output::describe(sheet);
    }
}

impl<F, W, A, B> Endpoint<(A, B)> for F
where
    F: Fn(A, B) -> W,
    W: Future<Output: Part>,
    A: Part,
    B: Part,
{
    fn describe(sheet: &mut Sheet<'_>) {
        A::describe(sheet);
        B::describe(sheet);
        W::Output::describe(sheet);
    }
}

impl<F, W, A, B, C> Endpoint<(A, B, C)> for F
where
    F: Fn(A, B, C) -> W,
    W: Future<Output: Part>,
    A: Part,
    B: Part,
    C: Part,
{
    fn describe(sheet: &mut Sheet<'_>) {
        A::describe(sheet);
        B::describe(sheet);
        C::describe(sheet);
        W::Output::describe(sheet);
    }
}

impl<F, W, A, B, C, D> Endpoint<(A, B, C, D)> for F
where
    F: Fn(A, B, C, D) -> W,
    W: Future<Output: Part>,
    A: Part,
    B: Part,
    C: Part,
    D: Part,
{
    fn describe(sheet: &mut Sheet<'_>) {
        A::describe(sheet);
        B::describe(sheet);
        C::describe(sheet);
        D::describe(sheet);
        W::Output::describe(sheet);
    }
}

impl Part for State<Arc<AdminState>> {}

impl Part for Extension<Caller> {}

/// Who asks for the headers wants to know who acts.
impl Part for HeaderMap {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.parameters.push(json!({
            "name": ACTOR_HEADER, "in": "header", "schema": { "type": "string" },
            "description": "Who acts, for the audit. A claim: the name of a token comes before it.",
        }));
    }
}

impl<T: JsonSchema> Part for Result<Path<T>, PathRejection> {
    fn describe(sheet: &mut Sheet<'_>) {
        let schema = sheet.schemas.asked.subschema_for::<T>();
        let name = sheet.path.split(['{', '}']).nth(1).unwrap_or_default();
        sheet.parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
    }
}

impl<T: JsonSchema> Part for Result<Query<T>, QueryRejection> {
    fn describe(sheet: &mut Sheet<'_>) {
        parameters::<T>(sheet);
    }
}

impl<T: JsonSchema> Part for Result<Json<T>, JsonRejection> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.body = Some(sheet.schemas.asked.subschema_for::<T>().to_value());
    }
}

impl<T: JsonSchema> Part for Result<Json<T>, Problem> {
    fn describe(sheet: &mut Sheet<'_>) {
        <Json<T> as Part>::describe(sheet);
    }
}

impl<T: JsonSchema> Part for Json<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.answer = Some(sheet.schemas.answered.subschema_for::<T>().to_value());
    }
}

/// The fields of `Q` as parameters of the query.
pub(super) fn parameters<Q: JsonSchema>(sheet: &mut Sheet<'_>) {
    let schema: Schema = Q::json_schema(&mut sheet.schemas.asked);
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(fields) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, field) in fields {
        let mut field = present(field);
        let description = field.remove("description").unwrap_or_default();
        sheet.parameters.push(json!({
            "name": name, "in": "query", "required": required.contains(&json!(name)), "description": description,
            "schema": field,
        }));
    }
}

/// The schema of a value that is there: a query has no null.
fn present(field: &Value) -> Map<String, Value> {
    let mut field = field.as_object().cloned().unwrap_or_default();
    let null = json!("null");
    if let Some(types) = field.get("type").and_then(Value::as_array)
        && let Some(one) = types.iter().find(|name| **name != null).cloned()
    {
        field.insert("type".to_owned(), one);
    }
    let some = field.get("anyOf").and_then(Value::as_array);
    if let Some(Value::Object(some)) = some.and_then(|any| any.iter().find(|one| one["type"] != null)).cloned() {
        field.remove("anyOf");
        field.extend(some);
    }
    field
}
