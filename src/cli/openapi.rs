//! `onceflow openapi`

use super::context::Context;
use super::exit::{Ending, Exit};
use crate::admin;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow openapi > onceflow-admin.json
  onceflow openapi | jq '.paths | keys'

The same document as GET /api/v1/openapi.json of a service of this version. It is JSON in every output format, and has no
`schema` of ours: it is a document of its own.";

/// The document itself, whatever the output format.
pub(super) fn run(context: &Context) -> Ending {
    context.out.text(&format!("{:#}\n", admin::openapi()))?;
    Ok(Exit::Ok)
}
