//! Metric names and log set-up.
