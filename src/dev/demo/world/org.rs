//! An organisation of 1,200 people in 60 departments from two directories. Some changes come late and some twice.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde_json::json;

use super::Maker;
use crate::broker::Outgoing;

const DIRECTORIES: [&str; 2] = ["dingtalk", "feishu"];
const DEPARTMENTS: usize = 30;
const PEOPLE: usize = 600;
/// Departments are delivered out of order within windows of this size: children before their parents too.
const WINDOW: usize = 12;
/// Every so many-th person changes once more, and the older state arrives after the newer one.
const LATE_EVERY: usize = 40;
/// Every so many-th person is delivered twice.
const TWICE_EVERY: usize = 60;

const DEPARTMENT: &str = "org.department.upserted.v1";
const USER: &str = "org.user.upserted.v1";
const MEMBERSHIP: &str = "org.membership.added.v1";

pub(super) fn events(maker: &Maker, rng: &mut StdRng) -> Vec<Outgoing> {
    DIRECTORIES.iter().flat_map(|directory| one_directory(maker, rng, &maker.id(directory))).collect()
}

fn one_directory(maker: &Maker, rng: &mut StdRng, directory: &str) -> Vec<Outgoing> {
    let mut departments: Vec<_> = (1..=DEPARTMENTS).map(|n| department(maker, directory, n)).collect();
    departments.chunks_mut(WINDOW).for_each(|window| window.shuffle(rng));
    let mut events = departments;
    for n in 1..=PEOPLE {
        let version = if n % LATE_EVERY == 0 { 2 } else { 1 };
        let newest = user(maker, directory, n, version);
        if n % TWICE_EVERY == 0 {
            events.push(newest.clone());
        }
        events.push(newest);
        if n % LATE_EVERY == 0 {
            events.push(user(maker, directory, n, 1));
        }
    }
    // Some memberships overtake the people they speak of.
    let mut memberships: Vec<_> = (1..=PEOPLE).map(|n| membership(maker, directory, n)).collect();
    memberships.shuffle(rng);
    let early = memberships.split_off(PEOPLE - 50);
    early.into_iter().chain(events).chain(memberships).collect()
}

fn department(maker: &Maker, directory: &str, n: usize) -> Outgoing {
    let id = format!("d{n}");
    let mut body =
        json!({"directory": directory, "id": id, "version": "1", "name": format!("Department {n}"), "sortOrder": n});
    if n > 1 {
        body["parentId"] = json!(format!("d{}", n / 3 + usize::from(n < 3)));
    }
    maker.about(DEPARTMENT, &format!("{directory}-{id}"), &format!("department/{directory}/{id}"), &body)
}

fn user(maker: &Maker, directory: &str, n: usize, version: usize) -> Outgoing {
    let id = format!("u{n}");
    let body = json!({
        "directory": directory, "id": id, "version": version.to_string(), "name": format!("Person {n}"),
        "email": format!("person{n}@example.com"), "title": format!("Title {version}"), "employeeNumber": format!("{n:05}"),
    });
    maker.about(USER, &format!("{directory}-{id}-{version}"), &format!("user/{directory}/{id}"), &body)
}

fn membership(maker: &Maker, directory: &str, n: usize) -> Outgoing {
    let (user, department) = (format!("u{n}"), format!("d{}", n % DEPARTMENTS + 1));
    let body = json!({
        "directory": directory, "userId": user, "departmentId": department, "version": "1", "primary": true, "title": "Member",
    });
    maker.about(MEMBERSHIP, &format!("{directory}-m{n}"), &format!("user/{directory}/{user}"), &body)
}
