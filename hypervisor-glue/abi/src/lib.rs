//! Xen's interface: structures, hypercalls, and the traits through which units see them.
#![no_std]
