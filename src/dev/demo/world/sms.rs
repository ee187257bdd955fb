//! 200 SMS requests; a few ask for a template that nobody approved.

use serde_json::json;

use super::Maker;
use crate::broker::Outgoing;

const REQUESTS: usize = 200;
/// Every so many-th request is turned down.
const UNKNOWN_TEMPLATE_EVERY: usize = 25;

pub(super) fn events(maker: &Maker) -> Vec<Outgoing> {
    (1..=REQUESTS).map(|n| request(maker, n)).collect()
}

fn request(maker: &Maker, n: usize) -> Outgoing {
    let template = if n.is_multiple_of(UNKNOWN_TEMPLATE_EVERY) { "no_such_template" } else { "login_code" };
    let id = maker.id(&format!("sms-{n}"));
    let body = json!({
        "requestId": id, "phone": format!("+86138{:08}", n), "templateId": template,
        "params": {"code": format!("{:06}", n * 137 % 1_000_000), "minutes": "5"}, "class": "OTP",
        "expiresAt": "2099-12-31T23:59:59Z", "signature": "Onceflow",
    });
    maker.plain("sms.requested.v1", &format!("sms-{n}"), &body)
}
