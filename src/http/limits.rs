//! The bounds within which clients are served.

use std::time::Duration;

/// The most header fields a request may have, whatever the limits say.
pub(super) const MOST_FIELDS: usize = 64;

/// The bounds within which clients are served.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; fewer where the limit of open files asks for it.
    pub connections: usize,
    /// Connections at once from one address (IPv6: from one /64).
    pub per_address: usize,
    /// Bytes of request line and header fields together.
    pub head_bytes: usize,
    /// Header fields of a request; no more than 64 have effect.
    pub header_fields: usize,
    /// Bytes of the request target.
    pub target_bytes: usize,
    /// Bytes of a request's body, whatever it asks for; a route may allow more for itself. A body
    /// of up to 1 KiB is read and dropped even if this is 0.
    pub body_bytes: usize,
    /// The longest time from a request's first byte to its last.
    pub request_time: Duration,
    /// The longest time from a connection's start, or its last answer, to the next request.
    pub idle_time: Duration,
    /// The longest time from an answer's first byte to its last.
    pub write_time: Duration,
    /// The longest time from the last answer to the end of the connection, for a client that goes
    /// on sending.
    pub linger_time: Duration,
    /// The longest time that a request waits for a worker before it is refused.
    pub queue_time: Duration,
    /// Requests that wait for a worker at once.
    pub queue: usize,
    /// Threads that run handlers; at least two.
    pub workers: usize,
    /// Changes under way at once; always fewer than workers, so that reads find one.
    pub changes: usize,
    /// Bytes of answers that clients have not taken yet, all together; while there are more, new
    /// requests are refused.
    pub unsent_bytes: usize,
    /// The longest time that running requests may take once the server is told to stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            per_address: 128,
            head_bytes: 8 << 10,
            header_fields: MOST_FIELDS,
            target_bytes: 2 << 10,
            body_bytes: 0,
            request_time: Duration::from_secs(5),
            // Proxies keep theirs for about 60 s, and must not meet a connection that just ends.
            idle_time: Duration::from_secs(75),
            write_time: Duration::from_secs(10),
            linger_time: Duration::from_secs(1),
            queue_time: Duration::from_secs(5),
            queue: 128,
            workers: 16,
            changes: 12,
            unsent_bytes: 16 << 20,
            grace: Duration::from_secs(4),
        }
    }
}
