//! The login machine against scripted initiators.
//!
//! Knows what real initiators send. Does not know the machine's inside.
