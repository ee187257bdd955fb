//! The work of one event: its transaction, what it tells downstream, and what it may have woken.

use super::department;
use crate::db::{DbError, Tx};
use crate::event::{Downstream, Rejection};
use crate::runtime::HandleError;

/// What became of a change. [`Blocked`](Self::Blocked) changes are kept or refused, depending on what blocks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The row now has it.
    Applied,
    /// The row has it already.
    NoChange,
    /// Something newer is stored.
    Stale,
    /// It is the newest, but can't be applied as things are.
    Blocked(Block),
}

impl Verdict {
    /// The verdict on an event that isn't newer than what is stored.
    pub(super) fn not_newer(repeats: bool) -> Self {
        if repeats { Self::NoChange } else { Self::Stale }
    }

    /// The verdict on an event that was written.
    pub(super) fn written(repeats: bool) -> Self {
        if repeats { Self::NoChange } else { Self::Applied }
    }
}

/// Why a change can't be applied, and what may free it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Stable code.
    pub(super) reason: &'static str,
    /// The key that frees it.
    pub(super) wake: Wake,
    /// For people: what, where, and what to do.
    pub(super) message: String,
}

impl Block {
    /// Whether the tree's shape forbids it: nothing missing would come by itself.
    pub(super) fn is_tree(&self) -> bool {
        self.wake == Wake::Tree
    }
}

/// Something that kept changes may wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wake {
    /// The user became live.
    User(String),
    /// The department became live.
    Department(String),
    /// The department lost a child or a member.
    Emptied(String),
    /// A department moved or ended.
    Tree,
}

impl Wake {
    /// As stored in `org_waiting.waits_for`.
    pub(super) fn key(&self) -> String {
        match self {
            Self::User(id) => format!("user/{id}"),
            Self::Department(id) => format!("department/{id}"),
            Self::Emptied(id) => format!("empty/{id}"),
            Self::Tree => "tree".into(),
        }
    }
}

/// Collects the effects of one event within one directory.
pub(super) struct Work<'a> {
    pub(super) tx: &'a Tx,
    pub(super) tenant: &'a str,
    pub(super) directory: &'a str,
    downstream: Vec<Downstream>,
    wakes: Vec<Wake>,
    tree_locked: bool,
}

impl<'a> Work<'a> {
    pub(super) fn new(tx: &'a Tx, tenant: &'a str, directory: &'a str) -> Self {
        Self { tx, tenant, directory, downstream: Vec::new(), wakes: Vec::new(), tree_locked: false }
    }

    /// Takes the tree's lock once. To be taken before row locks.
    pub(super) async fn lock_tree(&mut self) -> Result<(), DbError> {
        if !self.tree_locked {
            department::store::lock_tree(self).await?;
            self.tree_locked = true;
        }
        Ok(())
    }

    pub(super) fn has_tree(&self) -> bool {
        self.tree_locked
    }

    pub(super) fn tell(&mut self, event: Result<Downstream, Rejection>) -> Result<(), HandleError> {
        self.downstream.push(event?);
        Ok(())
    }

    pub(super) fn wake(&mut self, wake: Wake) {
        if !self.wakes.contains(&wake) {
            self.wakes.push(wake);
        }
    }

    pub(super) fn take_wakes(&mut self) -> Vec<Wake> {
        std::mem::take(&mut self.wakes)
    }

    pub(super) fn into_downstream(self) -> Vec<Downstream> {
        self.downstream
    }
}
