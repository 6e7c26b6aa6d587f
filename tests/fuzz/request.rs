//! Fuzz target: the request parser.
//!
//! Whatever bytes come, the outcome is one of: wait for more, a request within bounds, an error
//! with a code; and it does not depend on how the bytes were split into reads.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rapiddiskd::http::{Limits, examine};

fuzz_target!(|bytes: &[u8]| {
    // Smaller bounds than the daemon's, so that short inputs reach them.
    let limits =
        Limits { head_bytes: 400, target_bytes: 40, header_fields: 6, body_bytes: 1500, ..Limits::default() };
    let whole = examine(bytes, &limits);
    match whole {
        None => assert!(bytes.len() < limits.head_bytes + limits.body_bytes),
        Some(Ok(length)) => {
            assert!(length <= bytes.len() && length <= limits.head_bytes + limits.body_bytes);
            assert_eq!(examine(&bytes[..length], &limits), whole);
            assert_eq!(examine(&bytes[..length - 1], &limits), None);
        }
        Some(Err(status)) => assert!([400, 413, 414, 417, 431, 501, 505].contains(&status)),
    }
    // The first outcome that is not to wait stays.
    let decided = (0..bytes.len()).find_map(|length| examine(&bytes[..length], &limits));
    assert_eq!(decided.or(whole), whole);
});
