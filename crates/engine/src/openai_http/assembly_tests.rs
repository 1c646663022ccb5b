use opengrid_protocol::{Sampling, session::Tier};

use super::*;

const STOP: Token = 0;

fn request(prompt: &[Token], tokens_max: u32) -> GenerateRequest {
    GenerateRequest {
        client: [0; 32],
        tokens: prompt.to_vec(),
        prompt_tokens: prompt.len() as u32,
        completion_tokens_max: tokens_max,
        stop_tokens: vec![STOP],
        sampling: Sampling::greedy(),
        top_logprobs: Some(2),
        grammar: None,
        tier: Tier::default(),
    }
}

fn out(token: Token) -> TokenOut {
    TokenOut { token, logprob: Some(-0.5), top: vec![(token, -0.5), (7, -1.0), (8, -2.0)] }
}

fn chunk(tokens: &[Token]) -> Chunk {
    Chunk { tokens: tokens.iter().map(|token| out(*token)).collect(), ..Chunk::default() }
}

/// As llama-server: with the count so far and the bytes.
fn counted(tokens: &[Token], generated: u32, text: &[u8]) -> Chunk {
    Chunk { generated: Some(generated), text: text.to_vec(), ..chunk(tokens) }
}

fn with<T>(request: &GenerateRequest, test: impl FnOnce(&mut Assembly<'_>) -> T) -> T {
    let reference = Reference::of_bytes();
    let gaps = Gaps::of(&reference);
    let mut assembly = Assembly::new(&reference, &gaps, request);
    assembly.begin_segment();
    test(&mut assembly)
}

fn ids(step: &Step) -> Vec<Token> {
    step.tokens.iter().map(|out| out.token).collect()
}

#[test]
fn an_answer_ends_at_its_length_or_a_stop_token() {
    with(&request(&[1, 2], 2), |assembly| {
        assert_eq!(ids(&assembly.take(chunk(&[65])).unwrap()), [65]);
        let last = assembly.take(Chunk { end: Some(End::Length), ..chunk(&[66]) }).unwrap();
        assert_eq!((ids(&last), last.then), (vec![66], Then::Finished(Finish::Length)));
        assert_eq!(assembly.tokens, [1, 2, 65, 66]);
    });
    for end in [None, Some(End::Stop(None)), Some(End::Stop(Some(STOP)))] {
        let stopped = with(&request(&[1], 9), |assembly| assembly.take(Chunk { end, ..chunk(&[65, STOP]) }).unwrap());
        assert_eq!((ids(&stopped), stopped.then), (vec![65], Then::Finished(Finish::Stop(STOP))), "{end:?}");
    }
    let by_name = Chunk { end: Some(End::Stop(Some(STOP))), ..Chunk::default() };
    assert_eq!(
        with(&request(&[1], 9), |assembly| assembly.take(by_name).unwrap().then),
        Then::Finished(Finish::Stop(STOP))
    );
}

#[test]
fn an_end_token_that_nobody_asked_for_stands_in_the_answer() {
    with(&request(&[1], 3), |assembly| {
        let step = assembly.take(Chunk { end: Some(End::Stop(None)), ..chunk(&[65, 3]) }).unwrap();
        assert_eq!((ids(&step), step.then), (vec![65, 3], Then::Again));
        assert_eq!(assembly.begin_segment(), (1, true));
        assert_eq!(ids(&assembly.take(chunk(&[66])).unwrap()), [66]);
    });
}

#[test]
fn tokens_within_a_character_are_filled_in() {
    // One token a byte: é is two, of which llama-server streams the second.
    with(&request(&[1], 9), |assembly| {
        let step = assembly.take(counted(&[0xA9], 2, "é".as_bytes())).unwrap();
        assert_eq!(ids(&step), [0xC3, 0xA9]);
        assert_eq!(step.tokens[0].logprob, None, "of it the engine said none");
        assert_eq!(step.tokens[1].logprob, Some(-0.5));
        assert_eq!(ids(&assembly.take(counted(&[65], 3, b"A")).unwrap()), [65]);
    });
}

#[test]
fn what_cannot_be_filled_in_is_asked_for_again_as_a_whole() {
    with(&request(&[1], 9), |assembly| {
        assembly.take(counted(&[65], 1, b"A")).unwrap();
        let step = assembly.take(counted(&[0xA9], 4, "é".as_bytes())).unwrap();
        assert_eq!((ids(&step), step.then), (vec![], Then::Again));
        assert_eq!(assembly.begin_segment(), (3, false));
        let whole = Chunk { end: Some(End::Length), ..counted(&[0xC3, 0xA9, 66], 3, b"") };
        let step = assembly.take(whole).unwrap();
        assert_eq!((ids(&step), step.then), (vec![0xC3, 0xA9, 66], Then::Again));
        assert_eq!(assembly.begin_segment(), (5, true));
    });
}

#[test]
fn an_answer_cut_within_a_character_is_completed() {
    with(&request(&[1], 2), |assembly| {
        assembly.take(counted(&[65], 1, b"A")).unwrap();
        let step = assembly.take(Chunk { end: Some(End::Length), ..counted(&[], 2, b"") }).unwrap();
        assert_eq!(step.then, Then::Again);
        assert_eq!(assembly.begin_segment(), (1, false));
        let step = assembly.take(Chunk { end: Some(End::Length), ..counted(&[0xC3], 1, b"") }).unwrap();
        assert_eq!((ids(&step), step.then), (vec![0xC3], Then::Finished(Finish::Length)));
    });
}

#[test]
fn no_more_is_passed_on_than_was_asked_for() {
    with(&request(&[1], 9), |assembly| {
        let step = assembly.take(chunk(&[65])).unwrap();
        assert_eq!(step.tokens[0].top, [(65, -0.5), (7, -1.0)]);
        let mut odd = chunk(&[66]);
        odd.tokens[0].logprob = Some(f32::NAN);
        odd.tokens[0].top = vec![(256, -1.0), (9, f32::NEG_INFINITY), (10, -3.0)];
        let step = assembly.take(odd).unwrap();
        assert_eq!((step.tokens[0].logprob, step.tokens[0].top.as_slice()), (None, &[(10, -3.0)][..]));
    });
    let quiet = GenerateRequest { top_logprobs: None, ..request(&[1], 9) };
    let step = with(&quiet, |assembly| assembly.take(chunk(&[65])).unwrap());
    assert_eq!(step.tokens, [TokenOut { token: 65, logprob: None, top: vec![] }]);
}

#[test]
fn lies_are_errors() {
    let refused = |chunks: Vec<Chunk>| {
        with(&request(&[1], 2), |assembly| chunks.into_iter().find_map(|chunk| assembly.take(chunk).err()).unwrap())
    };
    assert_eq!(refused(vec![chunk(&[256])]), "a token lies outside the vocabulary");
    assert_eq!(refused(vec![chunk(&[65, 66, 67])]), "it sends more tokens than were asked for");
    assert_eq!(refused(vec![counted(&[65, 66], 1, b"AB")]), "it counts fewer tokens than it sent");
    let ended = |end, tokens: &[Token]| vec![Chunk { end: Some(end), ..chunk(tokens) }];
    assert_eq!(refused(ended(End::Length, &[65])), "it stopped before the answer was as long as was asked for");
    assert_eq!(refused(ended(End::Stop(Some(9)), &[65])), "it stopped at a token that is no stop token");
    assert_eq!(refused(ended(End::Stop(None), &[])), "it ended without a token");
}

#[test]
fn an_engine_that_only_ends_is_given_up() {
    let long = request(&[1], 100_000);
    let why = with(&long, |assembly| {
        (0..10_000).find_map(|_| {
            assembly.begin_segment();
            assembly.take(Chunk { end: Some(End::Stop(None)), ..chunk(&[3]) }).err()
        })
    });
    assert_eq!(why, Some("it ends answers again and again"));
}
