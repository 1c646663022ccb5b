use opengrid_protocol::{
    Sampling,
    session::{Finish, TokenOut, Usage},
};

use super::*;

fn jobs(slots: u16, queue_max: u16) -> Arc<Jobs> {
    let jobs =
        Arc::new(Jobs::new(Bounds { slots, queue_max, context_tokens: 100 }, Speeds { decode: 7.0, prefill: 50.0 }));
    jobs.start(Some(1));
    jobs
}

fn generate(id: u64) -> Generate {
    Generate {
        id,
        client: [0; 32],
        tokens: vec![1],
        prompt_tokens: 1,
        completion_tokens_max: 2,
        stop_tokens: Vec::new(),
        sampling: Sampling::greedy(),
        top_logprobs: None,
        grammar: None,
        tier: opengrid_protocol::session::Tier::Default,
    }
}

fn token(id: u64) -> JobEvent {
    JobEvent { id, progress: Progress::Token(TokenOut { token: 7, logprob: None, top: Vec::new() }) }
}

#[test]
fn the_queue_is_bounded() {
    let jobs = jobs(1, 1);
    let running = jobs.submit(generate).unwrap();
    let waiting = jobs.submit(generate).unwrap();
    assert_eq!(jobs.load(), Load { slots_busy: 1, queued: 1, healthy: true });
    assert_eq!(jobs.submit(generate).err(), Some(EngineError::Busy));
    drop(waiting);
    assert_eq!(jobs.load().queued, 0);
    drop(running);
    assert_eq!(jobs.load(), Load { slots_busy: 0, queued: 0, healthy: true });
}

#[test]
fn a_job_cancelled_before_it_was_written_is_never_written() {
    let jobs = jobs(1, 1);
    for _ in 0..10_000 {
        drop(jobs.submit(generate).unwrap());
    }
    assert_eq!(jobs.state.lock().outbox.len(), 0);
}

#[test]
fn events_reach_their_job_and_the_last_one_ends_it() {
    let jobs = jobs(2, 0);
    let mut one = jobs.submit(generate).unwrap();
    let finished = JobEvent { id: 0, progress: Progress::Finished(Finish::Length, Usage::default()) };
    jobs.handle(FromEngine::Events(vec![token(0), token(99), finished])).unwrap();
    assert!(matches!(one.events.try_recv(), Ok(Event::Tokens(tokens)) if tokens[0].token == 7));
    assert!(matches!(one.events.try_recv(), Ok(Event::Finished(Finish::Length, _))));
    assert_eq!(jobs.load().slots_busy, 0);
}

#[test]
fn a_child_that_sends_too_much_is_found_out() {
    let jobs = jobs(1, 0);
    let _one = jobs.submit(generate).unwrap();
    let flood = (0..20).map(|_| token(0)).collect();
    assert!(jobs.handle(FromEngine::Events(flood)).is_err());
    assert!(jobs.handle(FromEngine::LoadFailed("again".to_owned())).is_err());
}

#[test]
fn death_fails_what_runs_and_refuses_until_the_restart() {
    let jobs = jobs(1, 1);
    let mut one = jobs.submit(generate).unwrap();
    jobs.lose(&EngineError::Died);
    assert_eq!(one.events.try_recv(), Ok(Event::Failed(EngineError::Died)));
    assert_eq!(jobs.submit(generate).err(), Some(EngineError::Died));
    assert!(!jobs.load().healthy);
    jobs.start(Some(2));
    assert!(jobs.submit(generate).is_ok());
    jobs.close();
    jobs.start(Some(3));
    assert_eq!(jobs.submit(generate).err(), Some(EngineError::ShuttingDown));
}
