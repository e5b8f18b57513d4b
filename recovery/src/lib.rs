//! What the records of atomtree's log mean for the tree.
//!
//! `wal` makes bytes durable in order; this crate says what they are. A [`plan::Plan`] is a transaction as it is
//! logged: one net change for each name. [`apply::Applier`] carries changes out, at commit and in recovery alike, and
//! is the only code that touches the user's tree. [`recover::Recovery`] is what opening a store does after any stop
//! that was not a clean close: [`analyze`] reads the records, [`decision`] is the table from what is found to what is
//! done, [`sweep`] clears up. [`verify`] looks at everything and changes nothing.
//!
//! The rules, and the crash windows they close, stand in DESIGN.md.

pub mod acl;
pub mod analyze;
pub mod apply;
pub mod ballast;
pub mod copies;
pub mod decision;
pub mod error;
pub mod guards;
pub mod image;
pub mod images;
pub mod keeper;
pub mod known;
mod locate;
pub mod log_records;
pub mod manifest;
pub mod patched;
pub mod places;
pub mod plan;
pub mod quarantine;
pub mod recover;
pub mod retention;
pub mod stage;
pub mod subtree;
pub mod sweep;
pub mod tree_path;
pub mod verify;
pub mod weight;

pub use error::{Doing, Error};
