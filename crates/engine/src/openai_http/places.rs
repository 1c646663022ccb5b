//! Who runs and who waits. Slots are numbered: an engine that keeps a KV cache by slot gets told which one to use, so that
//! a cache is only ever met by the client whose prompt filled it.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Client = [u8; 32];

pub struct Places {
    semaphore: Arc<Semaphore>,
    slots: Mutex<Vec<Slot>>,
    waiting: Arc<AtomicU16>,
    queue_max: u16,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    busy: bool,
    /// Whose prompt it computed last.
    client: Option<Client>,
}

impl Places {
    pub fn new(slots: u16, queue_max: u16) -> Arc<Self> {
        let count = usize::from(slots.max(1));
        Arc::new(Self {
            semaphore: Arc::new(Semaphore::new(count)),
            slots: Mutex::new(vec![Slot::default(); count]),
            waiting: Arc::default(),
            queue_max,
        })
    }

    pub fn waiting(&self) -> u16 {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn running(&self) -> u16 {
        self.slots.lock().iter().filter(|slot| slot.busy).count() as u16
    }

    /// A place on the way to a slot: in the queue, or straight into a free one. `None` when all are taken.
    pub fn queue(self: &Arc<Self>) -> Option<Waiting> {
        let free = u16::try_from(self.semaphore.available_permits()).unwrap_or(u16::MAX);
        let most = self.queue_max.saturating_add(free);
        let more = |count: u16| (count < most).then(|| count + 1);
        let place = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()? + 1;
        Some(Waiting { places: self.clone(), place })
    }

    /// What a restarted engine kept is gone.
    pub fn forget_caches(&self) {
        self.slots.lock().iter_mut().for_each(|slot| slot.client = None);
    }

    fn take(self: &Arc<Self>, client: Client, permit: OwnedSemaphorePermit) -> Running {
        let mut slots = self.slots.lock();
        let free = |slot: &Slot| !slot.busy;
        let own = slots.iter().position(|slot| free(slot) && slot.client == Some(client));
        let unused = || slots.iter().position(|slot| free(slot) && slot.client.is_none());
        // A permit was had, so some slot is free.
        let index = own.or_else(unused).or_else(|| slots.iter().position(free)).unwrap_or(0);
        if let Some(slot) = slots.get_mut(index) {
            *slot = Slot { busy: true, client: Some(client) };
        }
        drop(slots);
        Running { places: self.clone(), slot: index, own_cache: own.is_some(), _permit: permit }
    }
}

pub struct Waiting {
    places: Arc<Places>,
    place: u16,
}

impl Waiting {
    /// A slot if one is free at once, else the place in the queue (1 is next).
    pub fn try_run(self, client: Client) -> Result<Running, (Self, u32)> {
        match self.places.semaphore.clone().try_acquire_owned() {
            Ok(permit) => Ok(self.places.take(client, permit)),
            Err(_) => {
                let place = u32::from(self.place);
                Err((self, place))
            }
        }
    }

    /// Waits for a slot, first come first served. `None` only when the engine is gone.
    pub async fn run(self, client: Client) -> Option<Running> {
        let permit = self.places.semaphore.clone().acquire_owned().await.ok()?;
        Some(self.places.take(client, permit))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.places.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

pub struct Running {
    places: Arc<Places>,
    pub slot: usize,
    /// The slot's cache is this client's own.
    pub own_cache: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(slot) = self.places.slots.lock().get_mut(self.slot) {
            slot.busy = false;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run(places: &Arc<Places>, client: u8) -> Running {
        places.queue().unwrap().try_run([client; 32]).map_err(|_| ()).unwrap()
    }

    #[test]
    fn a_cache_is_met_by_its_own_client_alone() {
        let places = Places::new(2, 0);
        let first = run(&places, 1);
        assert!(!first.own_cache);
        let slot = first.slot;
        drop(first);
        let other = run(&places, 2);
        assert!(other.slot != slot && !other.own_cache, "an unused slot before another's");
        let again = run(&places, 1);
        assert!(again.slot == slot && again.own_cache);
        drop((other, again));
        let third = run(&places, 3);
        assert!(!third.own_cache);
        drop(third);
        places.forget_caches();
        assert!(!run(&places, 3).own_cache);
    }

    #[test]
    fn the_queue_is_bounded() {
        let places = Places::new(1, 1);
        let running = run(&places, 1);
        let waiting = places.queue().unwrap();
        assert!(places.queue().is_none());
        assert_eq!((places.running(), places.waiting()), (1, 1));
        let (waiting, place) = waiting.try_run([2; 32]).err().unwrap();
        assert_eq!(place, 1);
        drop(running);
        assert!(waiting.try_run([2; 32]).is_ok());
        assert_eq!((places.running(), places.waiting()), (0, 0));
    }
}
