//! Bodies that are held whole, and the bound on what all of them take together.
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that held bodies may take, in all workers together.
#[derive(Debug, Clone)]
pub struct Room(Arc<AtomicU64>);

/// No room is left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A body held whole. What it takes is given back once nobody has a part of it any more.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Vec<u8>,
    taken: u64,
    room: Room,
}

impl Room {
    /// Room for `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    fn take(&self, bytes: u64) -> Result<(), Full> {
        let less = |left: u64| left.checked_sub(bytes);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.map(drop).map_err(|_| Full)
    }

    fn give(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Held {
    /// An empty one.
    pub(super) fn new(room: &Room) -> Self {
        Self {
            bytes: Vec::new(),
            taken: 0,
            room: room.clone(),
        }
    }

    /// Makes sure of room for `more` bytes, and takes no other than that: memory grows as the room does.
    pub(super) fn reserve(&mut self, more: usize) -> Result<(), Full> {
        let needed = self.bytes.len().saturating_add(more);
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        // By half again, so that a body that comes in small pieces is not copied for each of them.
        let roomy = self.bytes.capacity().saturating_mul(3) / 2;
        if self.grow(needed.max(roomy)).is_err() {
            self.grow(needed)?;
        }
        Ok(())
    }

    fn grow(&mut self, capacity: usize) -> Result<(), Full> {
        let more = (capacity as u64).saturating_sub(self.taken);
        self.room.take(more)?;
        self.taken += more;
        self.bytes
            .reserve_exact(capacity.saturating_sub(self.bytes.len()));
        Ok(())
    }

    /// Puts `data` behind what is there.
    pub(super) fn extend(&mut self, data: &[u8]) -> Result<(), Full> {
        self.reserve(data.len())?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Holds `bytes` instead.
    pub(super) fn replace(&mut self, mut bytes: Vec<u8>) -> Result<(), Full> {
        bytes.shrink_to_fit();
        let takes = bytes.capacity() as u64;
        self.room.take(takes.saturating_sub(self.taken))?;
        self.room.give(self.taken.saturating_sub(takes));
        self.taken = takes;
        self.bytes = bytes;
        Ok(())
    }

    /// How many bytes are there.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// To be sent in parts; each keeps all of it.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.give(self.taken);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn left(room: &Room) -> u64 {
        room.0.load(Ordering::Relaxed)
    }

    #[test]
    fn room_is_taken_while_any_part_is_there_and_given_back_after() {
        let room = Room::new(1000);
        let mut held = Held::new(&room);
        held.extend(&[7; 400]).unwrap();
        assert_eq!(left(&room), 600);
        let mut bytes = held.into_bytes();
        let part = bytes.split_to(1);
        drop(bytes);
        assert_eq!(left(&room), 600);
        drop(part);
        assert_eq!(left(&room), 1000);
    }

    #[test]
    fn what_has_no_room_is_refused_and_takes_none() {
        let room = Room::new(1000);
        let mut one = Held::new(&room);
        one.reserve(700).unwrap();
        let mut other = Held::new(&room);
        assert_eq!(other.extend(&[0; 301]), Err(Full));
        assert_eq!(left(&room), 300);
        other.extend(&[0; 300]).unwrap();
        assert_eq!(other.extend(&[0]), Err(Full));
        drop(one);
        // The last of the room is there for whom it is enough.
        other.extend(&[0; 500]).unwrap();
        other.extend(&[0; 200]).unwrap();
        assert_eq!((other.len(), left(&room)), (1000, 0));
        drop(other);
        assert_eq!(left(&room), 1000);
    }

    #[test]
    fn what_replaces_it_takes_its_own_room() {
        let room = Room::new(1000);
        let mut held = Held::new(&room);
        held.extend(&[0; 500]).unwrap();
        held.replace(vec![1; 100]).unwrap();
        assert_eq!((held.as_ref(), left(&room)), (&[1; 100][..], 900));
        held.replace(vec![2; 1000]).unwrap();
        assert_eq!(left(&room), 0);
        assert_eq!(held.replace(vec![3; 1001]), Err(Full));
        assert_eq!(held.as_ref(), [2; 1000]);
        drop(held);
        assert_eq!(left(&room), 1000);
    }
}
