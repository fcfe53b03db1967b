//! Decides what may be had: are the values allowed ([`validate`]), does the project's quota and
//! credit cover it ([`quota`]), which addresses does it get ([`address`]), on which host is there room
//! ([`place`]), when ([`book`]), and to which other one can it move while it runs ([`migrate`]).
//!
//! Everything here runs inside one transaction: it decides on the very state that it changes, so
//! there is no moment in which two requests can be promised the same room.

pub(crate) mod address;
pub(crate) mod book;
pub(crate) mod migrate;
pub(crate) mod place;
pub(crate) mod quota;
pub(crate) mod validate;
