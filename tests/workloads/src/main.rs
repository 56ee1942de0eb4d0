//! `xsload`: drives the guest's XenStore connection.
#![forbid(unsafe_code)]

fn main() {
    println!("xsload: nothing to do yet");
}
