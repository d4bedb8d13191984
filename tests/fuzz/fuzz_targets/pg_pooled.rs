#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code, reason = "each binary drives one of them")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::pg_pooled(data));
