//! What works on whole volumes: recovery, checkpoints, checks.
