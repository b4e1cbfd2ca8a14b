//! The stores themselves, and wrappers of the ports. Only `cli` names anything in here.
