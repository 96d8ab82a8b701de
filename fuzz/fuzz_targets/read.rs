//! Bytes to a graph and back.
#![no_main]

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    kprune_fuzz::read(content);
});
