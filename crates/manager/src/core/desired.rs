//! What a host should do, from the state.
