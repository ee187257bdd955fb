//! `onceflow version`

use serde_json::json;

use super::context::Context;
use super::exit::{Ending, Exit};
use super::output::Rows;

pub(super) fn run(context: &Context) -> Ending {
    let version = env!("CARGO_PKG_VERSION");
    let revision = option_env!("ONCEFLOW_REVISION").unwrap_or("unknown");
    let data = json!({ "version": version, "revision": revision, "rust": env!("CARGO_PKG_RUST_VERSION") });
    context.out.data("onceflow.version/1", &data, || {
        let mut rows = Rows::new(&["VERSION", "REVISION", "RUST"]);
        rows.push(vec![version.to_owned(), revision.to_owned(), env!("CARGO_PKG_RUST_VERSION").to_owned()]);
        rows
    })?;
    Ok(Exit::Ok)
}
