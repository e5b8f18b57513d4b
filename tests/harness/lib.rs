//! What the integration tests share.

pub mod crash;
pub mod volume;
