//! Forty messages that can't work, of nine kinds, and what puts one of the kinds right.

use serde_json::{Value, json};

use super::Maker;
use crate::broker::Outgoing;

/// The directory in which departments are moved in circles.
const CYCLE_DIRECTORY: &str = "dingtalk";
const USER: &str = "org.user.upserted.v1";
const DEPARTMENT: &str = "org.department.upserted.v1";
/// Department 1 is the root of each directory; these lie right below it.
const CIRCLES: [usize; 4] = [3, 4, 5, 2];

pub(super) fn events(maker: &Maker) -> Vec<Outgoing> {
    let mut events = Vec::new();
    let many = |count: usize, make: &dyn Fn(usize) -> Outgoing| (1..=count).map(make).collect::<Vec<_>>();
    events.extend(many(8, &|n| {
        maker.raw(USER, Some(maker.id(&format!("no-json-{n}"))), b"{\"directory\": oops".to_vec())
    }));
    events.extend(many(6, &|n| maker.plain("org.user.promoted.v1", &format!("no-type-{n}"), &json!({"n": n}))));
    events.extend(many(6, &|n| maker.plain(USER, &format!("no-field-{n}"), &no_version(maker))));
    events.extend(many(4, &|n| maker.raw(USER, None, format!("{{\"n\":{n}}}").into_bytes())));
    events.extend(many(4, &|n| with_content_type(maker, n, "application/xml")));
    events.extend(many(3, &|n| maker.raw(USER, Some(maker.id(&format!("deep-{n}"))), nested(200))));
    events.extend(many(4, &|n| wrong_total(maker, n)));
    events.push(maker.raw("sms.requested.v1", Some(maker.id("empty")), Vec::new()));
    events.extend(many(4, &|n| circle(maker, n - 1)));
    events
}

/// Moves each target out of the way, with a newer version, so that the refused move closes no circle any more.
pub(super) fn fixes(maker: &Maker) -> Vec<Outgoing> {
    let directory = maker.id(CYCLE_DIRECTORY);
    let fix = |n: &usize| {
        let child = child_of(*n);
        let body = json!({
            "directory": directory, "id": format!("d{child}"), "version": "3", "name": format!("Department {child}"),
            "parentId": "d1", "sortOrder": child,
        });
        department(maker, &format!("fix-{n}"), child, &body)
    };
    CIRCLES.iter().map(fix).collect()
}

/// Asks for a department to be put below its own child.
fn circle(maker: &Maker, index: usize) -> Outgoing {
    let n = CIRCLES[index];
    let body = json!({
        "directory": maker.id(CYCLE_DIRECTORY), "id": format!("d{n}"), "version": "2", "name": format!("Department {n}"),
        "parentId": format!("d{}", child_of(n)), "sortOrder": n,
    });
    department(maker, &format!("circle-{n}"), n, &body)
}

/// The tree is ternary: the children of n are 3n, 3n + 1 and 3n + 2.
fn child_of(n: usize) -> usize {
    n * 3
}

fn department(maker: &Maker, id: &str, n: usize, body: &Value) -> Outgoing {
    let subject = format!("department/{}/d{n}", maker.id(CYCLE_DIRECTORY));
    maker.about(DEPARTMENT, id, &subject, body)
}

fn no_version(maker: &Maker) -> Value {
    json!({"directory": maker.id(CYCLE_DIRECTORY), "id": "u1", "name": "Nobody"})
}

fn with_content_type(maker: &Maker, n: usize, content_type: &str) -> Outgoing {
    let mut outgoing = maker.plain(USER, &format!("xml-{n}"), &json!({}));
    outgoing.message.content_type = Some(content_type.to_owned());
    outgoing
}

fn wrong_total(maker: &Maker, n: usize) -> Outgoing {
    let body = json!({
        "orderNo": maker.id(&format!("WRONG-{n}")), "merchantId": "merchant-1", "currency": "CNY", "total": "1",
        "lines": [{"sku": "SKU-1", "quantity": "2", "unitPrice": "100"}],
    });
    maker.plain("order.placed.v1", &format!("wrong-total-{n}"), &body)
}

fn nested(depth: usize) -> Vec<u8> {
    let (open, close) = ("[".repeat(depth), "]".repeat(depth));
    format!("{{\"a\":{open}{close}}}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::World;

    #[test]
    fn the_world_has_the_size_that_it_promises() {
        let world = World::new("in", "r");
        assert_eq!(world.broken.len(), 40);
        let of = |prefix: &str| {
            let is = |o: &&crate::broker::Outgoing| o.route.routing_key.starts_with(prefix);
            world.sound.iter().filter(is).count()
        };
        assert_eq!(of("org.department"), 60);
        assert_eq!(of("org.membership"), 1_200);
        assert_eq!(of("payment.callback"), 500);
        assert_eq!(of("sms"), 200);
    }
}
