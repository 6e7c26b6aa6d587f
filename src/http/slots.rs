//! The table of connections.
//!
//! A token names a connection for as long as it lives, and never another one after it: late
//! events and late results of a closed connection find nothing.

use super::conn::Conn;

#[derive(Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

/// Connections by token.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a connection and names it. Tokens stay below 2^63.
    pub fn insert(&mut self, conn: Box<Conn>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.conn = Some(conn);
        token(slot, index)
    }

    /// The connection of this name, if it is still there.
    pub fn get(&mut self, token: u64) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        if u64::from(slot.generation) != token >> 32 { None } else { slot.conn.as_deref_mut() }
    }

    /// Takes it out.
    pub fn remove(&mut self, token: u64) -> Option<Box<Conn>> {
        self.get(token)?;
        let slot = &mut self.slots[token as u32 as usize];
        slot.generation = (slot.generation + 1) & (u32::MAX >> 1);
        self.free.push(token as u32);
        slot.conn.take()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Conn)> {
        let with_index = self.slots.iter().zip(0..);
        with_index.filter_map(|(slot, index)| Some((token(slot, index), slot.conn.as_deref()?)))
    }
}

fn token(slot: &Slot, index: u32) -> u64 {
    u64::from(slot.generation) << 32 | u64::from(index)
}
