//! The faults: each is a small value. Their ids are those of the catalogue (`catalogue.rs`).

pub(crate) mod broker;
mod cluster;
mod data;
mod database;
mod network;
mod operations;
mod process;

use futures_util::future::BoxFuture;

use crate::rig::{PLAIN, Rig, Setup};

/// What a fault does to its world. It returns once the fault is over and work goes on.
pub(crate) type Work<'a> = BoxFuture<'a, anyhow::Result<()>>;
pub(crate) type Inject = for<'a> fn(&'a mut Rig) -> Work<'a>;

/// One fault.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    /// Id in the catalogue, and after a dot which of several with that id.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) setup: Setup,
    /// It touches the servers themselves: no other fault beside it.
    pub(crate) alone: bool,
    pub(crate) inject: Inject,
}

impl Fault {
    /// The id in the catalogue.
    pub(crate) fn id(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    /// Letter of the catalogue's section.
    pub(crate) fn class(&self) -> &'static str {
        &self.name[..1]
    }

    const fn set(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }

    const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

const fn fault(name: &'static str, title: &'static str, inject: Inject) -> Fault {
    Fault { name, title, setup: PLAIN, alone: false, inject }
}

/// Two replicas, which share the work.
const TWO: Setup = Setup { replicas: 2, ..PLAIN };

/// All of them, those that need the servers for themselves last.
pub(crate) fn all() -> Vec<Fault> {
    let sections = [
        process::FAULTS,
        network::FAULTS,
        database::FAULTS,
        data::FAULTS,
        operations::FAULTS,
        broker::FAULTS,
        cluster::FAULTS,
    ];
    let (alone, beside): (Vec<Fault>, Vec<Fault>) = sections.concat().into_iter().partition(|fault| fault.alone);
    [beside, alone].concat()
}
