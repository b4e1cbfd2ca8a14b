//! Parse, wire, run: the only place that names concrete backends.
