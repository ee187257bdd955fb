//! The table of routes. What the document says of one is read off the types of its handler, so neither goes without the other.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodRouter, get, post};
use schemars::JsonSchema;

use super::super::state::AdminState;
use super::sheet::{Endpoint, Sheet, parameters};
use super::{method_not_allowed, not_found};

/// Routes, and how each is asked.
pub(super) struct Table {
    router: Router<Arc<AdminState>>,
    operations: Vec<Operation>,
}

/// One route and method.
pub(super) struct Operation {
    pub(super) method: Method,
    /// The template, below `/api/v1`.
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// What fills the sheet, one after the other.
    pub(super) describe: Vec<fn(&mut Sheet<'_>)>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), operations: Vec::new() }
    }

    /// A question.
    pub(super) fn get<H, A, T>(self, path: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<A, Arc<AdminState>> + Endpoint<T>,
        A: 'static,
    {
        self.add(Method::GET, (path, summary), (get(handler), H::describe))
    }

    /// A change, or a question too long for a URL.
    pub(super) fn post<H, A, T>(self, path: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<A, Arc<AdminState>> + Endpoint<T>,
        A: 'static,
    {
        self.add(Method::POST, (path, summary), (post(handler), H::describe))
    }

    /// A change whose body may be larger than the usual bound: up to `max` bytes.
    pub(super) fn post_up_to<H, A, T>(self, max: usize, path: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<A, Arc<AdminState>> + Endpoint<T>,
        A: 'static,
    {
        let handler = post(handler).layer(DefaultBodyLimit::max(max));
        self.add(Method::POST, (path, summary), (handler, H::describe))
    }

    /// Parameters of the last route that its handler takes out of the query one by one.
    pub(super) fn query<Q: JsonSchema>(mut self) -> Self {
        if let Some(last) = self.operations.last_mut() {
            last.describe.push(parameters::<Q>);
        }
        self
    }

    fn add(
        mut self,
        method: Method,
        (path, summary): (&'static str, &'static str),
        (handler, describe): (MethodRouter<Arc<AdminState>>, fn(&mut Sheet<'_>)),
    ) -> Self {
        self.router = self.router.route(path, handler);
        self.operations.push(Operation { method, path, summary, describe: vec![describe] });
        self
    }

    pub(super) fn router(self) -> Router<Arc<AdminState>> {
        self.router.method_not_allowed_fallback(method_not_allowed).fallback(not_found)
    }

    pub(super) fn operations(self) -> Vec<Operation> {
        self.operations
    }
}
