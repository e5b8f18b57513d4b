//! What the integration tests share.

pub mod chosen;
pub mod crash;
pub mod failing;
pub mod filler;
pub mod foreign;
pub mod foreign_dirs;
pub mod history;
pub mod interrupted;
pub mod versions;
pub mod volume;
