//! Integration tests of atomtree, in one binary: each module is one question asked of the whole engine.

mod alike;
mod basics;
mod cli;
mod concurrency;
mod conflicts;
mod crash_points;
mod damage;
mod debian_package;
mod errors;
mod foreign_dirs;
mod full_disk;
mod golden;
mod kills;
mod large;
mod made_directories;
mod metadata;
mod model;
mod power_cuts;
mod real_input;
mod rules;
mod settled;
mod source_tree;
mod spans;
mod tickets;
mod tidy;
mod upkeep;
