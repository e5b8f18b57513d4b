//! Integration tests of atomtree, in one binary: each module is one question asked of the whole engine.

mod basics;
mod cli;
mod concurrency;
mod conflicts;
mod crash_points;
mod damage;
mod errors;
mod golden;
mod kills;
mod metadata;
mod model;
mod power_cuts;
mod real_input;
mod settled;
mod spans;
mod tickets;
mod tidy;
mod upkeep;
