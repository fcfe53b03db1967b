//! The agent's parts against real QEMU guests. Needs QEMU, root and the tiny image
//! (`images/build tiny`); says so aloud where one is missing.

#[cfg(test)]
mod agent;
#[cfg(test)]
#[path = "../../src/testing/authority.rs"]
mod authority;
#[cfg(test)]
mod cascade;
#[cfg(test)]
mod elastic;
#[cfg(test)]
mod ksm;
#[cfg(test)]
mod migrate;
#[cfg(test)]
mod support;
#[cfg(test)]
mod vm;
