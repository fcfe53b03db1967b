//! The connection against the scripted fake, and against a real QEMU.

#[cfg(test)]
mod real;
#[cfg(test)]
mod scripted;
