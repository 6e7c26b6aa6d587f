//! The table of connections, and which of them can go on without an event.
//!
//! A token names a connection for as long as it lives, and never another one after it: late
//! events and late results of a closed connection find nothing.

use super::conn::Conn;

struct Slot<A> {
    generation: u32,
    conn: Option<Box<Conn<A>>>,
    /// The connection's token is in the list of those that can go on.
    is_listed: bool,
}

/// Connections by token.
pub(super) struct Slots<A> {
    slots: Vec<Slot<A>>,
    free: Vec<u32>,
    ready: Vec<u64>,
}

impl<A> Slots<A> {
    /// A table without connections.
    pub fn new() -> Slots<A> {
        Slots { slots: Vec::new(), free: Vec::new(), ready: Vec::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a connection and names it. Tokens stay below 2^63.
    pub fn insert(&mut self, conn: Box<Conn<A>>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, conn: None, is_listed: false });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.conn = Some(conn);
        slot.is_listed = false;
        token(slot, index)
    }

    /// The connection of this name, if it is still there.
    pub fn get(&mut self, token: u64) -> Option<&mut Conn<A>> {
        self.slot(token)?.conn.as_deref_mut()
    }

    /// Takes it out.
    pub fn remove(&mut self, token: u64) -> Option<Box<Conn<A>>> {
        let slot = self.slot(token)?;
        let conn = slot.conn.take()?;
        slot.generation = (slot.generation + 1) & (u32::MAX >> 1);
        self.free.push(token as u32);
        Some(conn)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Conn<A>)> {
        let with_index = self.slots.iter().zip(0..);
        with_index.filter_map(|(slot, index)| Some((token(slot, index), slot.conn.as_deref()?)))
    }

    /// Notes that a connection can go on without an event.
    pub fn list(&mut self, token: u64) {
        if let Some(slot) = self.slot(token)
            && !slot.is_listed
        {
            slot.is_listed = true;
            self.ready.push(token);
        }
    }

    /// Whether any can go on without an event.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the list of those that can go on, each once.
    pub fn take_ready(&mut self) -> Vec<u64> {
        let ready = std::mem::take(&mut self.ready);
        for &token in &ready {
            if let Some(slot) = self.slot(token) {
                slot.is_listed = false;
            }
        }
        ready
    }

    fn slot(&mut self, token: u64) -> Option<&mut Slot<A>> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        (u64::from(slot.generation) == token >> 32).then_some(slot)
    }
}

fn token<A>(slot: &Slot<A>, index: u32) -> u64 {
    u64::from(slot.generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::limits::Limits;
    use crate::http::peer::Peer;
    use crate::http::workers::Line;
    use std::time::Instant;

    fn conn() -> Box<Conn<()>> {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Box::new(Conn::new(Line::new(socket.into()), Peer::Unix, Instant::now(), &Limits::default()))
    }

    #[test]
    fn a_token_never_names_another_connection() {
        let mut slots = Slots::new();
        let [first, second] = [conn(), conn()].map(|conn| slots.insert(conn));
        assert!(slots.remove(first).is_some());
        let third = slots.insert(conn());
        assert_eq!((first as u32, slots.len()), (third as u32, 2));
        assert_ne!(first, third);
        assert!(slots.get(first).is_none() && slots.remove(first).is_none());
        let tokens: Vec<_> = slots.iter().map(|(token, _)| token).collect();
        assert_eq!(tokens, [third, second]);
    }

    #[test]
    fn each_is_listed_once_and_a_late_one_not_at_all() {
        let mut slots = Slots::new();
        let [first, second] = [conn(), conn()].map(|conn| slots.insert(conn));
        for token in [first, second, first] {
            slots.list(token);
        }
        assert!(slots.has_ready());
        assert_eq!(slots.take_ready(), [first, second]);
        assert!(!slots.has_ready());
        slots.remove(first);
        slots.list(first);
        assert!(!slots.has_ready());
        slots.list(second);
        assert_eq!(slots.take_ready(), [second]);
    }
}
