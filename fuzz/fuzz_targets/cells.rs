#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opengrid_fuzz::cells(data));
