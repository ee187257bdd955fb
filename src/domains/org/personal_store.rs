//! What the directories' tables keep of a user: only what the directory says now, since a deletion leaves a tombstone without personal data.

use crate::runtime::{Erasure, PersonalData};

const FIND: &str = "
    SELECT count(*) FROM onceflow.org_user
    WHERE tenant = $1 AND id = $2 AND state = 'live' AND $3::text[] IS NOT DISTINCT FROM $3::text[]";

/// Of this domain.
pub(super) const PERSONAL: &[PersonalData] = &[PersonalData {
    name: "users",
    find: FIND,
    erasure: Erasure::Elsewhere(
        "the directory still has this user: delete it there, and the deletion event removes what is kept here",
    ),
    forget_old: None,
}];
