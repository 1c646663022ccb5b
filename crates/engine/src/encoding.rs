//! Which texts an encoder computes next. Pure: no clock, no llama.cpp.
//!
//! A step takes whole texts of as many requests as fit. Requests take turns, so that a long list of texts holds up
//! nobody's short one.

use std::collections::VecDeque;

use opengrid_protocol::session::Token;

/// What a step has room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub texts: usize,
    pub tokens: usize,
}

#[derive(Debug)]
struct Job {
    id: u64,
    texts: Vec<Vec<Token>>,
    vectors: Vec<Vec<f32>>,
}

/// A request whose texts are all computed.
#[derive(Debug, PartialEq)]
pub struct Done {
    pub id: u64,
    /// As many as texts, in their order.
    pub vectors: Vec<Vec<f32>>,
}

#[derive(Debug, Default)]
pub struct Encodings {
    jobs: VecDeque<Job>,
    /// How many texts of each of the first jobs the present step has.
    planned: Vec<usize>,
}

impl Encodings {
    pub fn idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Each text must fit an empty step; the caller has checked it.
    pub fn enqueue(&mut self, id: u64, texts: Vec<Vec<Token>>) {
        self.jobs.push_back(Job { id, texts, vectors: Vec::new() });
    }

    /// Not between [`Encodings::plan`] and [`Encodings::computed`].
    pub fn cancel(&mut self, id: u64) {
        self.jobs.retain(|job| job.id != id);
    }

    /// The texts of the next step; none when idle.
    pub fn plan(&mut self, room: Room) -> Vec<&[Token]> {
        self.planned.clear();
        let mut texts: Vec<&[Token]> = Vec::new();
        let mut tokens = 0;
        for job in &self.jobs {
            let before = texts.len();
            for text in &job.texts[job.vectors.len()..] {
                if texts.len() >= room.texts || tokens + text.len() > room.tokens {
                    break;
                }
                tokens += text.len();
                texts.push(text);
            }
            // What is left is for those whose next text is short enough.
            self.planned.push(texts.len() - before);
        }
        texts
    }

    /// Takes the vectors of the planned texts; returns the requests that are complete.
    pub fn computed(&mut self, vectors: Vec<Vec<f32>>) -> Vec<Done> {
        let mut vectors = vectors.into_iter();
        let mut done = Vec::new();
        let mut again = VecDeque::new();
        for count in std::mem::take(&mut self.planned) {
            let Some(mut job) = self.jobs.pop_front() else { break };
            job.vectors.extend(vectors.by_ref().take(count));
            if job.vectors.len() >= job.texts.len() {
                done.push(Done { id: job.id, vectors: job.vectors });
            } else {
                again.push_back(job);
            }
        }
        // The first had its turn; those behind it come before it the next time.
        if again.len() > 1 {
            again.rotate_left(1);
        }
        again.append(&mut self.jobs);
        self.jobs = again;
        done
    }
}

/// Scales a vector to length 1. False where it has no direction: zeros, or no numbers.
pub fn normalise(vector: &mut [f32]) -> bool {
    let square: f64 = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    let length = square.sqrt();
    if !length.is_finite() || length <= 0.0 {
        return false;
    }
    for value in vector {
        *value = (f64::from(*value) / length) as f32;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ROOM: Room = Room { texts: 4, tokens: 10 };

    /// Runs until idle with vectors that name their text by its first token; ids in the order of completion.
    fn run(encodings: &mut Encodings, room: Room) -> Vec<Done> {
        let mut done = Vec::new();
        for _ in 0..10_000 {
            if encodings.idle() {
                return done;
            }
            let texts = encodings.plan(room);
            assert!(!texts.is_empty() && texts.len() <= room.texts);
            assert!(texts.iter().map(|text| text.len()).sum::<usize>() <= room.tokens);
            let vectors = texts.iter().map(|text| vec![text[0] as f32]).collect();
            done.extend(encodings.computed(vectors));
        }
        panic!("it does not end");
    }

    #[test]
    fn a_long_list_holds_up_nobody() {
        let mut encodings = Encodings::default();
        encodings.enqueue(1, vec![vec![7; 10]; 50]);
        encodings.enqueue(2, vec![vec![8; 10]]);
        encodings.enqueue(3, vec![vec![9; 3]; 2]);
        let order: Vec<u64> = run(&mut encodings, ROOM).iter().map(|done| done.id).collect();
        assert_eq!(order, [2, 3, 1]);
    }

    #[test]
    fn cancelled_requests_take_no_room() {
        let mut encodings = Encodings::default();
        encodings.enqueue(1, vec![vec![1; 10]]);
        encodings.enqueue(2, vec![vec![2; 10]]);
        encodings.cancel(1);
        assert_eq!(run(&mut encodings, ROOM), [Done { id: 2, vectors: vec![vec![2.0]] }]);
    }

    #[test]
    fn vectors_get_length_one_or_are_refused() {
        let mut vector = [3.0, 0.0, -4.0];
        assert!(normalise(&mut vector));
        assert_eq!(vector, [0.6, 0.0, -0.8]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(!normalise(&mut bad.clone()));
        }
    }

    proptest! {
        #[test]
        fn every_text_gets_its_own_vector_once(
            jobs in vec(vec(vec(0_u32..1_000, 1..10), 1..20), 1..12),
            texts in 1_usize..6, tokens in 10_usize..40,
        ) {
            let mut encodings = Encodings::default();
            for (id, job) in jobs.iter().enumerate() {
                encodings.enqueue(id as u64, job.clone());
            }
            let done = run(&mut encodings, Room { texts, tokens });
            prop_assert_eq!(done.len(), jobs.len());
            for Done { id, vectors } in done {
                let expected: Vec<_> = jobs[id as usize].iter().map(|text| vec![text[0] as f32]).collect();
                prop_assert_eq!(vectors, expected);
            }
        }
    }
}
