//! Peers: their names, what they can do, what they report.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layers::Layers;
use crate::numerics::NumericsClass;

/// A peer's name is one life of it: a pod name, never used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerName(pub String);

impl PeerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PeerName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl From<String> for PeerName {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a peer can do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PeerState {
    /// Reads its layers.
    #[default]
    Loading,
    /// Executes them.
    Ready,
    /// Executes them still and is about to go.
    Draining,
}

/// How a peer counts the KV pages of a session. It says so with its load, and gateways count as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Positions of a page.
    pub page_positions: u32,
    /// A session is let in when there are pages for this many positions beyond what it has (but no more than it can get), and as many count as
    /// taken for each that is there: sessions then seldom have to give pages back, and short answers never.
    pub positions_ahead: u32,
    /// Positions that a layer with a window has beyond it, at most: those before the window that it keeps, and those of a batch.
    pub positions_behind: u32,
}

impl Paging {
    /// Of this build, and of those that do not say theirs.
    pub const OWN: Self = Self { page_positions: 16, positions_ahead: 256, positions_behind: 384 };

    /// Positions whose pages count as taken by a session of `len` tokens, which gets at most `len_max`.
    #[must_use]
    pub fn counted_positions(self, len: u32, len_max: u32) -> u32 {
        len.saturating_add(self.positions_ahead).min(len_max)
    }
}

impl Default for Paging {
    fn default() -> Self {
        Self::OWN
    }
}

/// What a peer reports about itself five times a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Rows waiting for the engine.
    pub queue_rows: u32,
    /// KV pages not in use.
    pub free_pages: u32,
    /// Of those, pages that sessions which are here already are not about to take.
    pub spare_pages: u32,
    /// KV pages in all.
    pub total_pages: u32,
    /// How it counts them.
    pub paging: Paging,
    /// Rows put through a layer since the engine started: a count that stands still only when the engine does.
    pub layer_rows: u64,
    /// Which bits it computes, if it says so: peers of two classes are never on one route.
    pub arithmetic: Option<NumericsClass>,
    /// Measured rows per second through one layer, one row at a time.
    pub rows_per_s_per_layer: f64,
    /// Layers it can execute now.
    pub held: Vec<Layers>,
    /// It is about to go.
    pub draining: bool,
}

/// Loads by peer.
pub type Loads = BTreeMap<PeerName, Load>;
