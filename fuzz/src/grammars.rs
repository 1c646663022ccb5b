use std::sync::LazyLock;

use opengrid_grammar::{GrammarError, Grammars, Words};

static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let mut words = Words::default();
    (0..=255_u8).for_each(|byte| words.push(&[byte]));
    words.push_control("<|call|>");
    words.push_control("<|end|>");
    words.set_end_tokens(&[257]);
    Grammars::new(&words).unwrap_or_else(|error| panic!("{error}"))
});

/// A grammar of a peer: refused, or it leaves a token at each step, takes what it leaves and refuses the rest; a
/// constraint that resumed leaves the same.
pub fn grammars(data: &[u8]) {
    let grammar = String::from_utf8_lossy(data);
    let Ok(mut living) = GRAMMARS.compile(&grammar, &[]) else { return };
    let mut answer = vec![];
    for step in 0..6 {
        let mut logits = [0.0; 258];
        match living.mask(&mut logits) {
            Ok(()) => {}
            Err(GrammarError::Stuck(_)) => return,
            Err(other) => panic!("{other}"),
        }
        let allowed: Vec<u32> = (0..258).filter(|token| logits[*token as usize] == 0.0).collect();
        let token = allowed[step * 7 % allowed.len()];
        if token == 257 {
            return;
        }
        answer.push(token);
        if living.accept(token).is_err() {
            panic!("{token} was allowed");
        }
        if living.is_complete() {
            return;
        }
    }
    let mut resumed = GRAMMARS.compile(&grammar, &answer).unwrap_or_else(|error| panic!("{error}"));
    let (mut a, mut b) = ([0.0; 258], [0.0; 258]);
    assert_eq!(living.mask(&mut a).is_ok(), resumed.mask(&mut b).is_ok());
    assert_eq!(a.map(f32::to_bits), b.map(f32::to_bits));
}
