//! Runtime, spawning, clocks, failpoints.
