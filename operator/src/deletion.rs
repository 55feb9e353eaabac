//! A pod to delete.

/// A pod to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Pod name.
    pub name: String,
    /// Pod UID: not another pod of the same name.
    pub uid: String,
    /// Without waiting for its node to confirm.
    pub now: bool,
}
