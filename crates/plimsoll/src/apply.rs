//! `plimsoll apply`: a file says what a project is to be, and is made so.
//!
//! ```text
//!   file (what is wanted) ---+
//!                            +--> plan (pure) --> shown --> carried out, step by step, awaited
//!   manager (what is) -------+
//! ```
//!
//! Only what the file names is touched: the project's quota, networks and VMs of these names, and
//! the members `NAME-1`, `NAME-2`, ... of an entry with `count` or `split`. Members beyond a `count`
//! are removed, the highest numbers first. The plan is a value: the same file and the same cluster
//! give the same plan, and one that is carried out leaves nothing to be planned.

pub(crate) mod execute;
pub(crate) mod file;
pub(crate) mod plan;
pub(crate) mod render;
