//! In which steps the events of a micro-batch are applied: users in sets, new memberships side by side, all else one by one.

use foldhash::{HashMap, HashSet};

use super::event::{Change, MembershipKey, OrgEvent};
use crate::runtime::Received;

/// Events, by their place in the batch, that are applied together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Users, written by one statement.
    Users(Vec<usize>),
    /// New or changed memberships, no two of them the same: their statements are sent without waiting for one another.
    Memberships(Vec<usize>),
    /// An event of another kind.
    One(usize),
}

/// The steps, in order. Events of one partition key keep their order (I-5); others may change places, so users go first where
/// no key has both.
pub(super) fn steps(events: &[Received<OrgEvent>]) -> Vec<Step> {
    let is_user = |n: &usize| matches!(events[*n].event.change, Change::User { .. });
    let key = |n: &usize| (&events[*n].envelope.tenant, &events[*n].envelope.partition_key);
    let (users, others): (Vec<usize>, Vec<usize>) = (0..events.len()).partition(is_user);
    let of_users: HashSet<_> = users.iter().map(key).collect();
    let apart = others.iter().all(|n| !of_users.contains(&key(n)));
    let order = if apart { users.into_iter().chain(others).collect() } else { (0..events.len()).collect::<Vec<_>>() };
    let mut steps = Vec::new();
    let (mut users, mut memberships) = (Users::default(), Memberships::default());
    for n in order {
        let event = &events[n];
        let (tenant, directory) = (event.envelope.tenant.as_str(), event.event.directory.as_str());
        match &event.event.change {
            Change::User { id, values } => {
                let user = (tenant, directory, id.as_str());
                steps.extend(memberships.end());
                if !users.takes(user, values.is_none()) {
                    steps.extend(users.end());
                }
                users.add(n, user, values.is_none());
            }
            Change::Membership { key, values: Some(_) } => {
                let membership = (tenant, directory, key);
                steps.extend(users.end());
                if memberships.keys.contains(&membership) {
                    steps.extend(memberships.end());
                }
                memberships.add(n, membership);
            }
            _ => {
                steps.extend(users.end());
                steps.extend(memberships.end());
                steps.push(Step::One(n));
            }
        }
    }
    steps.extend(users.end());
    steps.extend(memberships.end());
    steps
}

/// A user's tenant, directory and id.
type User<'a> = (&'a str, &'a str, &'a str);

/// Users that one statement can write. A deletion has effects of its own on the memberships, so it is the only event about
/// its user.
#[derive(Default)]
struct Users<'a> {
    places: Vec<usize>,
    /// Whether the user's event is a deletion.
    users: HashMap<User<'a>, bool>,
}

impl<'a> Users<'a> {
    fn takes(&self, user: User<'a>, deletion: bool) -> bool {
        self.users.get(&user).is_none_or(|deleted| !deleted && !deletion)
    }

    fn add(&mut self, place: usize, user: User<'a>, deletion: bool) {
        self.places.push(place);
        self.users.insert(user, deletion);
    }

    fn end(&mut self) -> Option<Step> {
        self.users.clear();
        (!self.places.is_empty()).then(|| Step::Users(std::mem::take(&mut self.places)))
    }
}

/// Different memberships, by tenant, directory, and user and department.
#[derive(Default)]
struct Memberships<'a> {
    places: Vec<usize>,
    keys: HashSet<(&'a str, &'a str, &'a MembershipKey)>,
}

impl<'a> Memberships<'a> {
    fn add(&mut self, place: usize, membership: (&'a str, &'a str, &'a MembershipKey)) {
        self.places.push(place);
        self.keys.insert(membership);
    }

    fn end(&mut self) -> Option<Step> {
        self.keys.clear();
        (!self.places.is_empty()).then(|| Step::Memberships(std::mem::take(&mut self.places)))
    }
}
