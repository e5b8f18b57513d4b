//! What the integration tests share.

pub mod crash;
pub mod history;
pub mod volume;
